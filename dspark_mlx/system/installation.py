"""Another distribution, dspark-mlx, installs a package of this import name: both cannot be had."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

OTHER = "dspark-mlx"


def check_installation(package: Path) -> None:
    """Refuse a folder in which two projects' files lie over one another.

    Args:
        package: this package's folder.

    Raises:
        ImportError: the other distribution is installed into it.
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
