"""The wheel `mlx-metal` for macOS: compiled kernels, and their headers, of one MLX version."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

# Versions whose kernels were read and compared; pyproject.toml allows none before the first.
VERSIONS = ("0.32.2", "0.32.3", "0.32.4")
PLATFORM = "macosx_15_0_arm64"
WANTED = ("mlx/lib/mlx.metallib", "mlx/include/mlx/backend/metal/kernels/")


class NoWheelError(Exception):
    """The wheel cannot be had here; the message says why."""


@dataclass(frozen=True)
class StockKernels:
    """What a version's wheel holds."""

    version: str
    metallib: Path
    headers: Path


def stock_kernels(version: str, folder: Path) -> StockKernels:
    """The kernels of an MLX version, fetched with pip once and kept in `folder`.

    Raises:
        NoWheelError: pip cannot fetch it.
    """
    home = folder / f"mlx-metal-{version}"
    if not home.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            unpacked = Path(temporary) / "unpacked"
            _unpack(_downloaded(version, Path(temporary)), unpacked)
            unpacked.rename(home)
    return StockKernels(version, home / "mlx/lib/mlx.metallib", home / "mlx/include")


def _downloaded(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    command += ["--platform", PLATFORM, "--python-version", "3.11", "--only-binary=:all:"]
    done = subprocess.run(
        [str(part) for part in (*command, f"mlx-metal=={version}")],
        capture_output=True,
        text=True,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["pip downloaded nothing"]
        raise NoWheelError(f"mlx-metal {version} for macOS cannot be fetched: {said[-1]}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith(WANTED)])
