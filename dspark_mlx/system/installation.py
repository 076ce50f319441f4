"""Check against the distribution dspark-mlx, another project with this package's import name.

Both install the same folder, so only one of them can be installed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

OTHER = "dspark-mlx"


def check_installation(package: Path) -> None:
    """Refuse a package folder that holds the files of both projects.

    Args:
        package: this package's folder.

    Raises:
        ImportError: the other distribution is installed into this folder.
    """
    try:
        other = distribution(OTHER)
    except PackageNotFoundError:
        return
    if Path(str(other.locate_file(package.name))).resolve() == package.resolve():
        raise ImportError(
            f"{package}: {OTHER} {other.version} is another project that installs the same folder. "
            f"Run: pip uninstall {OTHER} dspark-mlx-lm; then install the one that you want."
        )
