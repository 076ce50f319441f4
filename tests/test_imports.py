"""The one direction of imports, and other habits that only reading the source can check."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import dspark_mlx

PACKAGE = Path(dspark_mlx.__file__).parent
# Files and folders, lowest first. What stands on a level imports from the levels before it and from
# its own folder, never from a neighbour: two folders cannot lean on each other.
LEVELS = (
    "version errors",
    "types numbers progress",
    "system lookup",
    "kernels",
    "checkpoint calibration text",
    "sampling",
    "caches deepseek_v4",
    "schedulers drafters targets",
    "vision",
    "reuse",
    "engine plots",
    "serving",
    "decoder",
    "profiling benchmark",
    "replay",
    "evaluation convert",
    "pairs",
    "load",
    "terminal",
    "__init__",
    "generate chat bench evaluate profile calibrate models server train convert.__main__ __main__",
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
COMMANDS = frozenset(LEVELS[-1].split())


def name_of(path: Path) -> str:
    """Dotted name below dspark_mlx; "__init__" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


# In a checkout convert is a link, which rglob does not follow by itself.
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "convert").rglob("*.py")})
SOURCES = {name_of(path): ast.parse(path.read_text()) for path in FILES}
IS_PACKAGE = {name for name in SOURCES if (PACKAGE / name.replace(".", "/")).is_dir()}


def room_of(name: str) -> str:
    """What has a level: convert's own command, or the file or folder at the top."""
    return name if name in LEVEL else name.split(".")[0]


def imports_of(name: str) -> set[str]:
    """Modules of dspark_mlx that a module imports anywhere in it, below dspark_mlx."""
    package = name.split(".") if name in IS_PACKAGE else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "dspark_mlx"}
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                up = len(package) - (node.level - 1)
                base = ["dspark_mlx", *package[:up], *base]
            if base[:1] != ["dspark_mlx"]:
                continue
            module = ".".join(base)
            below = module.partition(".")[2]
            # "from .x import y": y is a module of x, or a name in x.
            for alias in node.names:
                inner = f"{below}.{alias.name}".lstrip(".")
                found.add(f"dspark_mlx.{inner}" if inner in SOURCES else module)
    return {full.partition(".")[2] or "__init__" for full in found}


def test_every_room_has_a_level():
    """A new folder that nothing holds to the one direction."""
    assert {room_of(name) for name in SOURCES} - set(LEVEL) == set()


def test_imports_point_one_way():
    """A layer that reaches up: a head that knows the drafter, a loop that knows text."""
    for name in SOURCES:
        room = room_of(name)
        others = {other for other in imports_of(name) if room_of(other) != room}
        up = [other for other in others if LEVEL[room_of(other)] >= LEVEL[room]]
        assert up == [], f"{name} imports {up}"


def test_the_reader_finds_imports():
    """The tests above passing because nothing was found."""
    assert {"engine.rounds", "engine.stream", "types"} <= imports_of("decoder.decoder")
    assert {"errors", "schedulers"} <= imports_of("decoder.loaded_pair")
    assert "convert.drafter" in imports_of("pairs.stored")
    assert "drafters.dspark.config" in imports_of("convert.packagings.deepspec_qwen3")
    assert "checkpoint.linear" in imports_of("drafters.heads.vanilla")


def test_levels_of_the_design_are_kept():
    """A table edited until it allowed everything."""
    chain = ("types", "sampling", "drafters", "engine", "decoder", "pairs", "load", "generate")
    levels = [LEVEL[name] for name in chain]
    assert levels == sorted(set(levels))


def test_few_files_stand_flat():
    """A folder of everything, in which nothing is found."""
    assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_nothing_imports_a_command():
    """A library function that only a command has; `python -m` warning about its own module."""
    for name in SOURCES:
        room = room_of(name)
        commands = {other for other in imports_of(name) if room_of(other) in COMMANDS - {room}}
        assert commands == set(), f"{name} imports {commands}"


def test_only_pairs_and_its_own_command_import_convert():
    """Decoding that depends on the checkpoints' packagings."""
    for name in SOURCES:
        converting = {other for other in imports_of(name) if other.split(".")[0] == "convert"}
        assert not converting or name.split(".")[0] in ("pairs", "convert"), name


def test_heads_know_no_drafter():
    """A head that can only be used inside one drafter."""
    for name in SOURCES:
        if name.startswith("drafters.heads"):
            others = imports_of(name)
            assert all(other.startswith(("drafters.heads", "checkpoint")) for other in others), name


def test_the_package_imports_no_command():
    """python -m dspark_mlx.generate warning that the module was imported before it ran, and
    dspark_mlx.generate standing for the module."""
    check = "import sys, dspark_mlx; print([m for m in sys.modules if m.startswith('dspark_mlx.')])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    assert "dspark_mlx.load" in loaded
    assert not loaded & {f"dspark_mlx.{name}" for name in (*COMMANDS, "terminal", "terminal.flags")}


def test_no_error_is_swallowed():
    """A bug of ours, or Ctrl-C, hidden by a handler that takes everything."""
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                where = f"{name}, line {node.lineno}"
                assert node.type is not None, where
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                assert not caught & {"Exception", "BaseException"}, where


def test_no_behaviour_behind_environment_variables():
    """A switch that no argument shows."""
    names = {"environ", "environb", "getenv", "putenv"}
    for name, tree in SOURCES.items():
        # XDG_CACHE_HOME; MLX's own switch, whose user needs no advice; what mlx.launch gives.
        if name in ("system.files", "terminal.cudnn", "terminal.machines"):
            continue
        for node in ast.walk(tree):
            where = f"{name}, line {getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Attribute) and node.attr in names), where
            assert not (isinstance(node, ast.alias) and node.name in names), where


def test_nothing_of_mlx_is_patched():
    """An app that embeds this and sees mlx or mlx-lm behave differently."""
    for name, tree in SOURCES.items():
        foreign = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                if (module or "").split(".")[0] in ("mlx", "mlx_lm", "transformers"):
                    foreign |= {(a.asname or a.name).split(".")[0] for a in node.names}
        for node in ast.walk(tree):
            where = f"{name}, line {getattr(node, 'lineno', 0)}"
            for target in node.targets if isinstance(node, ast.Assign) else []:
                while isinstance(target, ast.Attribute):
                    target = target.value
                    assert not (isinstance(target, ast.Name) and target.id in foreign), where
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                assert getattr(node.args[0], "id", "") not in foreign, where


def test_every_package_is_installed():
    """A folder that a clone has and a wheel has not."""
    settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    listed = settings["tool"]["setuptools"]["packages"]
    assert {name for name in IS_PACKAGE if name != "__init__"} == {
        name.partition(".")[2] for name in listed if name != "dspark_mlx"
    }
