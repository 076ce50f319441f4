"""The command: its flags, what it refuses to start with, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request

import pytest
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
    ],
)
def test_what_is_unsafe_or_wrong_is_refused_before_a_model_loads(flags, said):
    """A server open to the network without a key; minutes of loading before an error."""
    with pytest.raises(InputError, match=said):
        server.main(["--model", "/nowhere", *flags])


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_drains(tmp_path, number):
    """Ctrl-C that cuts an answer off, a traceback, or a process that stays."""
    folder = worded_target(tmp_path / "target", max_position_embeddings=256)
    command = [sys.executable, "-m", "dspark_mlx.server", "--model", str(folder), "--no-drafter"]
    process = subprocess.Popen(
        [*command, "--port", "0"], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr is not None
    said = ""
    while "running on" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    address = said.rsplit("running on ", 1)[1].split()[0]
    body = (
        b'{"messages": [{"role": "user", "content": "w5 w6"}], "max_tokens": 100, "stream": true}'
    )
    kind = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", body, kind)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.readline().startswith(b"data: ")
        process.send_signal(number)
        time.sleep(0.05)
        assert answer.read().endswith(b"data: [DONE]\n\n")
    rest = process.stderr.read()
    assert process.wait(30) == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert "Traceback" not in rest


def test_recommended_settings_yield_to_flags():
    """--generation-config that overrules a flag, or that does nothing."""
    named = {"temperature": 0.2, "top_p": 1.0, "top_k": 0}
    recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert server._not_named(recommended, named) == {"top_p": 0.95, "top_k": 20}
