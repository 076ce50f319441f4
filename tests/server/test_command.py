"""The command: its flags, what it refuses to start with, and how it ends."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from helpers import bare
from helpers.slow_cases import some_slow
from helpers.worded import worded_target

from dspark_mlx import InputError
from dspark_mlx.server import __main__ as server

pytest.importorskip("uvicorn", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "example.org"], "--api-key-file"),
        (["--allowed-origins", "*"], "--allowed-origins"),
        (["--api-key-file", "/nowhere/key"], "/nowhere/key"),
        (["--temp", "-1"], "temperature"),
        (["--chat-template-args", "[]"], "--chat-template-args"),
        (["--host", "nope.invalid", "--api-key-file", "KEY"], "nope.invalid"),
    ],
)
def test_what_is_unsafe_or_wrong_is_refused_before_a_model_loads(flags, said, tmp_path):
    """A server open to the network without a key; minutes of loading before an error."""
    key = tmp_path / "key"
    key.write_text("secret")
    flags = [str(key) if flag == "KEY" else flag for flag in flags]
    with pytest.raises(InputError, match=said):
        server.main(["--model", "/nowhere", *flags])


def test_a_port_that_is_taken_is_refused_before_a_model_loads():
    """A model that is loaded for a server which cannot listen."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}, which cannot"):
            server.main(["--model", "/nowhere", "--port", str(port)])


def test_mlx_lms_flags_are_taken():
    """A command line of mlx_lm.server that is refused."""
    flags = {
        "--model": "m",
        "--host": "127.0.0.1",
        "--port": "8081",
        "--temp": "0.5",
        "--top-p": "0.9",
        "--top-k": "4",
        "--min-p": "0.1",
        "--max-tokens": "9",
        "--decode-concurrency": "2",
        "--prefill-step-size": "64",
        "--chat-template-args": "{}",
        "--allowed-origins": "http://a:1,http://b",
        "--log-level": "ERROR",
    }
    args = server._parser().parse_args([part for pair in flags.items() for part in pair])
    assert args.allowed_origins == ["http://a:1", "http://b"] and args.port == 8081


@contextlib.contextmanager
def started(folder):
    """A server's process and its address; what it says later is in `stderr`."""
    command = [sys.executable, "-m", "dspark_mlx.server", "--model", str(folder), "--no-drafter"]
    process = subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    said = ""
    try:
        while "running on" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, said.rsplit("running on ", 1)[1].split()[0]
    finally:
        process.kill()
        process.wait()


def asked(address: str, tokens: int, stream: bool) -> urllib.request.Request:
    message = {"role": "user", "content": "w5 w6"}
    body = {"messages": [message], "max_tokens": tokens, "stream": stream}
    kind = {"content-type": "application/json"}
    url = f"{address}/v1/chat/completions"
    return urllib.request.Request(url, json.dumps(body).encode(), kind)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_drains(tmp_path, number):
    """Ctrl-C that cuts an answer off, a traceback, or a process that stays."""
    folder = worded_target(tmp_path / "target", max_position_embeddings=256)
    with started(folder) as (process, address):
        with urllib.request.urlopen(asked(address, 100, True), timeout=30) as answer:
            assert answer.readline().startswith(b"data: ")
            process.send_signal(number)
            time.sleep(0.05)
            assert answer.read().endswith(b"data: [DONE]\n\n")
        rest = process.stderr.read()
        assert process.wait(30) == (130 if number == signal.SIGINT else -signal.SIGTERM)
        assert "Traceback" not in rest


@pytest.mark.slow
def test_a_second_ctrl_c_ends_answers_and_says_so(tmp_path):
    """Answers that go on, connections cut without a word, tracebacks."""
    folder = worded_target(tmp_path / "target", max_position_embeddings=16384)
    told: list[tuple[int, str]] = []

    def whole(address: str) -> None:
        try:
            urllib.request.urlopen(asked(address, 16000, False), timeout=60)
        except urllib.error.HTTPError as error:
            told.append((error.code, error.read().decode()))

    with started(folder) as (process, address):
        waiting = threading.Thread(target=whole, args=(address,))
        waiting.start()
        with urllib.request.urlopen(asked(address, 16000, True), timeout=60) as answer:
            assert answer.readline().startswith(b"data: ")
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)
            last = answer.read()
        waiting.join(60)
        rest = process.stderr.read()
        assert process.wait(30) == 130
    assert "Traceback" not in rest
    assert b"shutting_down" in last
    ((code, message),) = told
    assert code == 503 and "shutting down" in message


STARTS = """
import os, signal, sys
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from dspark_mlx.server import __main__ as command
from dspark_mlx.server.listening import Server, listener
from dspark_mlx.terminal.command import run

moment, number = sys.argv.pop(1), getattr(signal, sys.argv.pop(1))
now = lambda name: name == moment and os.kill(os.getpid(), number)

class Decoder:
    def close(self):
        print("closed", flush=True)

@asynccontextmanager
async def lifespan(app):
    now("lifespan")
    yield
    print("ended", flush=True)

def serve(args):
    now("load")
    server = Server(Decoder(), Starlette(lifespan=lifespan), port=0, log_level="error")
    loop = server.config.get_loop_factory
    server.config.get_loop_factory = lambda: now("before") or loop()
    server.run([listener("127.0.0.1", 0)])
    return 0

command._serve = serve
run(command.main)
"""


SIGNALS = [(at, name) for at in ("load", "before", "lifespan") for name in ("SIGINT", "SIGTERM")]


@pytest.mark.parametrize("case", some_slow(SIGNALS, (SIGNALS[0], SIGNALS[3], SIGNALS[4])), ids=str)
def test_a_signal_while_the_server_starts(case):
    """A server that goes on running, or a cancelled start's traceback."""
    moment, number = case
    flags: Any = {"capture_output": True, "text": True, "timeout": 60}
    flags["preexec_fn"] = bare.listen_to_ctrl_c
    done = subprocess.run([sys.executable, "-c", STARTS, moment, number], check=False, **flags)
    assert done.returncode == (130 if number == "SIGINT" else -signal.SIGTERM)
    assert done.stderr == ("interrupted\n" if number == "SIGINT" else "")
    assert done.stdout == ("" if moment == "load" else "ended\n")


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_start(tmp_path):
    """A Ctrl-C that is lost between the handlers of Python, asyncio and uvicorn.

    One may be lost to C's `system`, which ignores SIGINT while it runs: MLX's CPU backend asks by
    it for a compiler, some 16 ms once a process.
    """
    folder, seeded, lost = worded_target(tmp_path / "target"), random.Random(5), 0
    command = [sys.executable, "-X", "importtime", "-m", "dspark_mlx.server"]
    command += ["--model", str(folder), "--no-drafter", "--port", "0"]
    for number in (signal.SIGINT, signal.SIGTERM) * 12:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, preexec_fn=bare.listen_to_ctrl_c
        )
        assert process.stderr is not None
        # Before that Python itself answers.
        while "dspark_mlx.system.process" not in process.stderr.readline():
            assert process.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(4 * seeded.random())
        process.send_signal(number)
        try:
            lines = process.communicate(timeout=10)[1].splitlines()
        except subprocess.TimeoutExpired:
            lost += 1
            process.send_signal(number)
            lines = process.communicate(timeout=10)[1].splitlines()
        said = "\n".join(line for line in lines if not line.startswith("import time:"))
        assert process.returncode == (130 if number == signal.SIGINT else -number), said
        assert "Traceback" not in said and "Exception" not in said, said
    assert lost <= 1


def test_recommended_settings_yield_to_flags():
    """--generation-config that overrules a flag, or that does nothing."""
    named = {"temperature": 0.2, "top_p": 1.0, "top_k": 0}
    recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert server._not_named(recommended, named) == {"top_p": 0.95, "top_k": 20}
