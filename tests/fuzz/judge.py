"""What is wrong with how a command ended: nothing, or a fault with the place it comes from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from .commands import Call
from .process import Outcome

LONGEST = 1000
"""Characters of a message."""
_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')
_OURS = re.compile(r"(?:dspark_mlx|convert)/(?!.*site-packages).*\.py$")
_BAR = re.compile(r"\d%\|| \[\d\d:\d\d")
"""A progress bar of tqdm."""
# What is said beside the error, by command.
_NEWS = {
    "chat": re.compile(r"/reset starts over|no command "),
    "train": re.compile(r"step \d+: |.*: going on after step "),
}

Tree = dict[str, str]
"""Path to what is there: a digest, "folder" or where a link leads."""


@dataclass(frozen=True)
class Fault:
    """What is wrong.

    Attributes:
        kind: of fault, with the exception's name. where: the last line of the package that knew.
        message: what was said.
    """

    kind: str
    where: str
    message: str


def tree(folder: Path) -> Tree:
    """Everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"link to {path.readlink()}"
        elif path.is_dir():
            found[str(path.relative_to(folder))] = "folder"
        else:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def fault(call: Call, outcome: Outcome, before: Tree, after: Tree, aside: Path) -> Fault | None:
    """The first thing that is wrong.

    Args:
        call: what was run. outcome: how it ended.
        before, after: its folder.
        aside: see `process.run`.
    """
    said = outcome.stderr.decode("utf-8", "replace")
    if outcome.bound or outcome.status < 0:
        kind = outcome.bound or f"killed by signal {-outcome.status}"
        return Fault(kind, _where(said), said.partition('  File "')[0][-300:])
    if "Traceback (most recent call last)" in said:
        last = said.rpartition("Traceback (most recent call last):")[2]
        lines = [x for x in re.split(r"[\n\r]", last) if x[:1].strip() and not _BAR.search(x)]
        name = lines[0] if lines else last[-300:]
        kind = name.partition(":")[0]
        return Fault(f"traceback: {kind}", _where(said), name[:300])
    fits = call.command == "convert" and "check" in call.arguments and outcome.status == 1
    if outcome.status not in (0, 2) and not fits:
        return Fault(f"exit status {outcome.status}", "", said[-300:])
    if outcome.status == 2 and (problem := _message(call, said)):
        return Fault(problem, "", said[-600:])
    return _left(call, outcome, before, after, aside)


def _where(said: str) -> str:
    """File, line and function of the last frame of the package."""
    frames = [m.groups() for m in _FRAME.finditer(said)]
    ours = [f for f in frames if _OURS.search(f[0]) and "site-packages" not in f[0]]
    if not ours:
        return ""
    # A killed process shows its newest frame first.
    path, line, function = ours[0 if "(most recent call first)" in said else -1]
    parts = Path(path).parts
    start = max(i for i, part in enumerate(parts) if part in ("dspark_mlx", "convert"))
    return f"{'/'.join(parts[start:])}:{line} {function}"


def _message(call: Call, said: str) -> str:
    """What is wrong with the message of a refusal."""
    lines = [line for line in re.split(r"[\n\r]", said) if line.strip() and not _BAR.search(line)]
    if news := _NEWS.get(call.command):
        lines = [line for line in lines if not news.match(line)]
    notes = [line for line in lines if line.startswith("note: ")]
    if len(notes) > 1:
        return "several notes"
    lines = [line for line in lines if line not in notes]
    if len(lines) != 1:
        return f"{'several' if lines else 'no'} lines"
    if not lines[0].startswith("error: "):
        return "no error:"
    return "" if len(lines[0]) <= LONGEST else "long message"


def _left(call: Call, outcome: Outcome, before: Tree, after: Tree, aside: Path) -> Fault | None:
    """Files that should not be there, or not be changed."""
    changed = [path for path in before if after.get(path) != before[path]]
    # A run goes on with what it has, and calibrations are stored beside the drafter.
    own: tuple[str, ...] = ("run/", "out/", "run", "out") if call.command == "train" else ()
    own += ("drafter/calibration.json",) if call.command == "calibrate" else ()
    changed = [path for path in changed if not path.startswith(own)] if own else changed
    if changed and "--overwrite" not in call.arguments:
        return Fault("inputs changed", "", ", ".join(changed[:5]))
    new = [path for path in after if path not in before]
    halves = [path for path in new if re.search(r"(^|/)\.|\.(partial|old|tmp)$", path)]
    halves += [f"cache/{p}" for p in tree(aside / "cache") if p.endswith((".partial", ".old"))]
    # MLX keeps compiled kernels in its own folder there.
    halves += [f"tmp/{path}" for path in tree(aside / "tmp") if path != "mlx"]
    if halves:
        return Fault("left behind", "", ", ".join(halves[:5]))
    if outcome.status == 2 and (kept := [p for p in new if not (own and p.startswith(own))]):
        return Fault("written though refused", "", ", ".join(kept[:5]))
    return None
