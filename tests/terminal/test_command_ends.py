"""How commands end: one line on standard error and a status, whatever the terminal and the system
do; interrupted at any moment, while they are imported as well."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
from helpers import bare
from helpers.worded import worded_target

from dspark_mlx import InputError, bench, chat, generate, profile
from dspark_mlx.convert import __main__ as convert
from dspark_mlx.server import __main__ as server
from dspark_mlx.terminal import command
from dspark_mlx.train import __main__ as train

RUN = "from dspark_mlx.terminal import command\ncommand.run(main)\n"
TALKS = "def main(argv):\n    print('text ' * 9)\n    return 0\n"


def lines_of(done: subprocess.CompletedProcess) -> list[str]:
    return done.stderr.decode().replace("\r", "\n").split("\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_standard_output(unbuffered):
    """A traceback, or Python's own complaint while it shuts down."""
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = bare.run(TALKS + RUN, stdout=full, env=environment)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "error: standard output: found no space left; expected a place with room to write.\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves(unbuffered):
    """`| head`: BrokenPipeError, or what Python says of it at its end."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = bare.run(TALKS + RUN, stdout=writing, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(closed, tmp_path):
    """`<&-`, `>&-`: None in place of a stream, or a file of ours printed into."""
    path = tmp_path / "file"
    script = (
        "sys.argv[0], sys.orig_argv = '-m', [sys.executable, '-m', 'dspark_mlx.x']\n"
        "from dspark_mlx.system import process\n"
        "def main(argv):\n"
        f"    with open({str(path)!r}, 'w') as file:\n"
        "        print(repr(command.read_input()), file=file)\n"
        "        print('text', flush=True)\n"
        "        sys.stdout.isatty(), os.write(1, b'more')\n"
        "        raise command.InputError('a', 'b', 'c')\n"
    )

    def close():
        for number in closed:
            os.close(number)

    done = bare.run(script + RUN, preexec_fn=close, input=b"said")
    assert done.returncode == 2
    assert path.read_text() == ("''\n" if 0 in closed else "'said'\n")
    assert done.stdout == (b"" if 1 in closed else b"text\nmore")
    assert done.stderr == (b"" if 2 in closed else b"error: a: found b; expected c.\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_without_the_letter(encoding):
    """UnicodeEncodeError in the middle of an answer; a "?" in JSON, which cannot be read back."""
    script = (
        "def main(argv):\n    print('a\\U0001f600')\n"
        "    command.print_json({'text': 'a\\U0001f600'})\n    return 0\n"
    )
    done = bare.run(script + RUN, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    shown, value = done.stdout.decode(encoding).splitlines()
    assert shown == ("a\U0001f600" if encoding == "utf-8" else "a?")
    assert json.loads(value) == {"text": "a\U0001f600"}


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--prompt", "caf\udce9"], "--prompt"),
        (["--prompt=caf\udce9"], "--prompt"),
        (["caf\udce9"], "arguments"),
    ],
)
def test_arguments_that_are_not_text(arguments, where):
    """Half characters that reach the tokenizer, whose TypeError says nothing of them."""
    with pytest.raises(InputError, match=rf"^{where}: found byte 0xe9 at character \d+, "):
        command._check_arguments(arguments)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("a", "b\nb", "c" * 9999), 2, "error: a: found b b; expected ccc"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.EMFILE, "Too many open files", "f"), 2, "error: f: found Too many open"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2, "error: f: found Perm"),
        (OSError(errno.EIO, "Input/output error"), 2, "error: standard output: found Input/out"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "error: the system: found Too many"),
        (OSError(), 2, "error: the system: found OSError"),
        (MemoryError(), 2, "error: memory: found too little"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"), 2, "error: text: found 'utf-8' codec"),
        (SystemExit(2), 2, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_for_users_to_read_is_one_line(error, status, message):
    """Tracebacks."""

    def main(argv):
        raise error

    found, said = command._outcome(main)
    assert found == status and said.startswith(message)
    assert len(said.splitlines()) <= 1 and len(said) < 1000


def test_a_full_disk_is_named(tmp_path):
    """The checkpoint blamed for it, or a number of bytes that could not be written."""

    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x" / "y"))

    status, said = command._outcome(main)
    mount = next(p for p in (tmp_path, *tmp_path.parents) if p.is_mount())
    assert status == 2
    assert f"{tmp_path}/x/y: found no space left on the disk at {mount} (" in said


def test_an_error_under_a_bar_has_a_line_of_its_own():
    """A message written on behind the bar."""
    script = (
        "from tqdm import tqdm\n"
        "def main(argv):\n"
        "    for _ in tqdm([1, 2, 3], desc='Working', mininterval=0, leave=False):\n"
        "        raise command.InputError('a', 'b', 'c')\n"
    )
    lines = lines_of(bare.run(script + RUN))
    assert lines[1].startswith("Working") and "error: a: found b; expected c." in lines


@pytest.mark.parametrize("flag", ["--bits", "--acceptance"])
def test_flags_of_the_synthetic_pair_alone_are_refused(flag):
    """A bench of the built-in pair that looks as if it had other weights."""
    with pytest.raises(InputError, match=f"{flag}: found no --synthetic beside it"):
        bench.main([flag, "8" if flag == "--bits" else "0.5"])


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (chat, ["--temp", "warm"], "--temp: found 'warm'; expected a number."),
        (bench, ["--repeats", "x"], "--repeats: found 'x'; expected a whole number."),
        (generate, ["--max-tokens"], "--max-tokens/-m: found no value; expected one argument."),
        (generate, ["--exact", "--tem=x"], "--temp: found 'x'; expected a number."),
        (
            profile,
            ["--no"],
            "found --no; expected one of --no-drafter, --no-kernels, --no-compiled.",
        ),
        (chat, ["--zzz"], "chat: found --zzz; expected the arguments that --help shows.\n"),
        (
            chat,
            ["--temp=1", "x", "--top_p=1"],
            "found x --top_p=1; expected the arguments that --help shows. Did you mean --top-p?",
        ),
        (
            convert,
            ["check", "d", "--targte", "t"],
            "convert check: found --targte t; expected "
            "the arguments that --help shows. Did you mean --target?",
        ),
        (convert, ["export", "--q-bits", "4"], "no --from, --to; expected a value"),
        (convert, ["drafer"], "Did you mean drafter?"),
        (generate, ["-p", "x", "--temperature", "1"], "Did you mean --temp?"),
        (generate, ["-p", "x", "--precision", "flaot32"], "Did you mean float32?"),
        (
            generate,
            ["-p", "x", "--no-drafter", "--drafter", "d"],
            "expected only one of the two.\n",
        ),
        (server, ["--port", "x"], "--port: found 'x'; expected a port, 0 to 65535."),
        (server, ["--port", "70000"], "--port: found '70000'; expected a port, 0 to 65535."),
        (server, ["--queue-size", "0"], "found '0'; expected a whole number, 1 or more."),
        (server, ["--log-level", "loud"], "found 'loud'; expected one of "),
        (train, [], "found no --to; expected a value, as --help shows."),
        (convert, ["drafter"], "drafter: found no --from, --to; expected a value, as --help"),
        (convert, ["nothing"], "COMMAND: found 'nothing'; expected one of "),
        (convert, [], "convert: found no COMMAND; expected a value, as --help shows.\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_arguments_are_one_line(module, arguments, said, capsys):
    """argparse's usage, a screen of it; names of Python's functions in place of what is wrong."""
    with pytest.raises(SystemExit) as end:
        module.main(arguments)
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.startswith("error: ") and shown.count("\n") == 1 and said in shown


def test_a_warning_is_one_line():
    """The line of source that Python shows below."""
    script = "import warnings\ndef main(argv):\n    warnings.warn('a\\nb')\n    return 0\n"
    assert bare.run(script + RUN).stderr == b"warning: a b\n"


@pytest.mark.parametrize("module", [generate, chat])
def test_a_warning_stands_behind_the_text(module, tmp_path, monkeypatch):
    """ "warning: The text ends after" in the middle of a streamed line."""
    folder = worded_target(tmp_path / "target", max_position_embeddings=16)
    lines = iter(["w5 w6", None])
    monkeypatch.setattr(chat, "_read_line", lambda: next(lines))
    screen = io.StringIO()  # both streams, in the order of a terminal
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, screen)
    arguments = ["--model", str(folder), "--no-drafter", "--max-tokens", "40"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = command._show_warning
        assert module.main(arguments + (["--prompt", "w5 w6"] if module is generate else [])) == 0
    shown = screen.getvalue().split("\n")
    (at,) = (i for i, line in enumerate(shown) if "The text ends" in line)
    assert shown[at].startswith("warning: The text ends after")
    assert shown[at - 1].count(" w") == 14


def test_nothing_is_changed_where_no_command_runs():
    """An app that embeds this and no longer sees KeyboardInterrupt."""
    script = "from dspark_mlx.system import process\nos.kill(os.getpid(), signal.SIGINT)\n"
    assert bare.run(script).stderr.decode().endswith("KeyboardInterrupt\n")
    assert warnings.showwarning is not command._show_warning


def test_a_chat_goes_on_after_bytes_that_are_not_text(tmp_path, monkeypatch, capsys):
    """A pasted byte that ends a conversation with all its messages."""
    answers = iter(["w5", "w5 \udce9", "w6", None])
    monkeypatch.setattr(chat, "_read_line", lambda: next(answers))
    target = worded_target(tmp_path / "target")
    assert chat.main(["--model", str(target), "--no-drafter", "-m", "2"]) == 0
    shown = capsys.readouterr()
    assert "this line: found byte 0xe9 at character 4" in shown.err
    assert len(shown.out.splitlines()) == 2


def interrupted(read: int, delay: float, *flags: str) -> tuple[int, list[str]]:
    """Start a command, interrupt it, and return its status and what it said.

    Args:
        read: imports to wait for, after the package's first.
        delay: seconds to wait after them.
        flags: of the command.
    """
    call = [sys.executable, "-X", "importtime", "-m", "dspark_mlx.generate", "--prompt", "w5"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ready = bare.listen_to_ctrl_c
    process: Any = subprocess.Popen([*call, *flags], preexec_fn=ready, **pipes)
    for line in process.stderr:
        if "dspark_mlx.system.process" in line:
            break
    for _ in range(read):
        process.stderr.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    return process.returncode, [
        line for line in said.splitlines() if not line.startswith("import time:")
    ]


@pytest.mark.parametrize("read", [0, 150])
def test_ctrl_c_while_importing(read):
    """Seconds of imports that answer with a traceback."""
    assert interrupted(read, 0) == (130, ["interrupted"])


@pytest.mark.slow
def test_ctrl_c_at_any_moment(tmp_path):
    """A moment before the first handler, between two of them, or while Python shuts down."""
    target, seeded = worded_target(tmp_path / "target"), random.Random(3)
    flags = ("--model", str(target), "--no-drafter", "-m", "200", "--temp", "1")
    for _ in range(20):
        status, said = interrupted(seeded.randrange(3000), seeded.random() / 2, *flags)
        assert status in (0, 130) and said in ([], ["interrupted"]), said


def test_ctrl_c_in_the_work():
    """A status that shells do not know."""
    script = "def main(argv):\n    os.kill(os.getpid(), signal.SIGINT)\n    return 0\n"
    done = bare.run(script + RUN)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


@pytest.mark.parametrize("work", ["pass", "command.process.raise_on_interrupt()"])
def test_a_ctrl_c_that_python_drops_is_raised_again(work):
    """A process that goes on behind "Exception ignored in"; a traceback between two handlers."""
    script = (
        "import time\n"
        "class Interrupted:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        f"def main(argv):\n    {work}\n    Interrupted()\n    time.sleep(30)\n    return 0\n"
    )
    done = bare.run(script + RUN)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


@pytest.mark.parametrize("moment", ["raise_on_interrupt", "end_on_interrupt"])
def test_ctrl_c_between_two_handlers(moment):
    """A traceback of the lines around the command."""
    script = (
        "from dspark_mlx.system import process\n"
        "signal.signal(signal.SIGINT, process._end)\n"
        f"real = process.{moment}\n"
        "def interrupted():\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    real()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        f"process.{moment} = interrupted\n"
        "main = lambda argv: 0\n"
    )
    done = bare.run(script + RUN)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")
