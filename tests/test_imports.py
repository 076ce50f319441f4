"""The one direction of imports, and other habits that only reading the source can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dspark_mlx

PACKAGE = Path(dspark_mlx.__file__).parent
# A module imports from its own level and the ones before it; a new module needs a line here.
LEVELS = (
    "version process errors installation blas strict_json system_errors locks staging files",
    "types ranges quantization canonical config bars tally hub precision matrix tensor_writer "
    "command numbers foreign template_budget detokenizer",
    "layout checkpoint ranking limits network messages chat_template tokenizer_files end_tokens "
    "positions",
    "tokenizer",
    "sampling grammar prompts registry heads cache speed reliability fingerprint recorded",
    "calibration",
    "calibration_report calibrations",
    "rotary layers vocabulary targets schedulers plots request",
    "backbone drafter",
    "dspark eagle3",
    "assemble engine compare",
    "verify",
    "rounds",
    "stream show overhead recording timing",
    "decoder replay measure",
    "interleaved versus",
    "profiles replay_report evaluation",
    "convert builtin",
    "folders",
    "load",
    "__init__ cli_sampling cli",
    "models bench chat evaluate generate server train profile calibrate convert.__main__ __main__",
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
MAY_IMPORT_CONVERT = {"folders", "builtin"}


def name_of(path: Path) -> str:
    """Dotted name below dspark_mlx; "__init__" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


# In a checkout convert is a link, which rglob does not follow by itself.
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "convert").rglob("*.py")})
SOURCES = {name_of(path): ast.parse(path.read_text()) for path in FILES}
IS_PACKAGE = {name for name in SOURCES if (PACKAGE / name.replace(".", "/")).is_dir()}


def group_of(name: str) -> str:
    """What has a level: convert's own command, or the top-level module or folder."""
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


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_one_way(name):
    """A layer that reaches up: a head that knows the drafter, a loop that knows text."""
    assert group_of(name) in LEVEL, f"{name} needs a place in LEVELS"
    mine = LEVEL[group_of(name)]
    above = [other for other in imports_of(name) if LEVEL[group_of(other)] > mine]
    assert above == []


def test_the_reader_finds_imports():
    """The tests above passing because nothing was found."""
    assert {"rounds", "stream", "errors", "schedulers"} <= imports_of("decoder")
    assert "convert.drafter" in imports_of("folders")
    assert "config" in imports_of("convert.packagings.deepspec_qwen3")
    assert "matrix" in imports_of("heads.vanilla")


def test_levels_of_the_design_are_kept():
    """A level list edited until it allowed everything."""
    chain = ("types", "sampling", "drafter", "rounds", "stream", "decoder", "load", "generate")
    levels = [LEVEL[name] for name in chain]
    assert levels == sorted(set(levels))


@pytest.mark.parametrize("name", [n for n in SOURCES if group_of(n) != "convert"])
def test_only_load_and_builtin_import_convert(name):
    """Decoding that depends on the checkpoints' packagings."""
    converting = {other for other in imports_of(name) if other.split(".")[0] == "convert"}
    allowed = name in MAY_IMPORT_CONVERT or name.startswith("convert.")
    assert allowed or converting == set()


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith("heads")])
def test_heads_know_no_drafter(name):
    """A head that can only be used inside one drafter."""
    assert "drafter" not in imports_of(name)


def test_the_package_imports_no_command():
    """python -m dspark_mlx.generate warning that the module was imported before it ran, and
    dspark_mlx.generate standing for the module."""
    assert not imports_of("__init__") & {"generate", "chat", "bench", "cli", "command"}
    check = "import sys, dspark_mlx; print([m for m in sys.modules if m.startswith('dspark_mlx.')])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    assert "dspark_mlx.load" in loaded
    assert not loaded & {f"dspark_mlx.{c}" for c in ("generate", "chat", "bench", "cli", "command")}


@pytest.mark.parametrize("name", SOURCES)
def test_no_error_is_swallowed(name):
    """A bug of ours, or Ctrl-C, hidden by a handler that takes everything."""
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}"
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            assert not caught & {"Exception", "BaseException"}, f"line {node.lineno}"


@pytest.mark.parametrize("name", [n for n in SOURCES if n != "files"])
def test_no_behaviour_behind_environment_variables(name):
    """A switch that no argument shows."""
    for node in ast.walk(SOURCES[name]):
        names = {"environ", "environb", "getenv", "putenv"}
        assert not (isinstance(node, ast.Attribute) and node.attr in names), f"line {node.lineno}"
        assert not (isinstance(node, ast.alias) and node.name in names)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_of_mlx_is_patched(name):
    """An app that embeds this and sees mlx or mlx-lm behave differently."""
    tree = SOURCES[name]
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if (module or "").split(".")[0] in ("mlx", "mlx_lm", "transformers"):
                foreign |= {(a.asname or a.name).split(".")[0] for a in node.names}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            while isinstance(target, ast.Attribute):
                target = target.value
                assert not (isinstance(target, ast.Name) and target.id in foreign), node.lineno
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
            assert getattr(node.args[0], "id", "") not in foreign, f"line {node.lineno}"
