"""How the processes of mlx.launch meet: what it gives them is checked before MLX reads it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers.bare import listen_to_ctrl_c
from helpers.deepseek_v4 import FOLDER
from helpers.grouped import free_ports

from dspark_mlx.errors import InputError
from dspark_mlx.terminal.machines import check_hosts

TWO = '[["127.0.0.1:5000"], ["127.0.0.1:5001"]]'


@pytest.mark.parametrize(
    ("hosts", "rank", "message"),
    [
        ("", "0", "not JSON"),
        ("[]", "0", r"found \[\]; expected addresses by rank"),
        ("[[], []]", "0", "expected addresses by rank"),
        ('{"a": 1}', "0", "expected addresses by rank"),
        ('[["127.0.0.1"], ["127.0.0.2"]]', "0", "expected addresses by rank"),
        ('[{"ssh": "a", "ips": ["10.0.0.1"]}]', "0", "its own --hostfile"),
        (TWO, "x", r"MLX_RANK: found 'x'; expected 0 to 1"),
        (TWO, "2", r"MLX_RANK: found '2'"),
        (TWO, "", "MLX_RANK: found ''"),
    ],
)
def test_a_host_file_of_nonsense_is_refused(tmp_path, monkeypatch, hosts, rank, message):
    """A traceback, a process that a division by zero ends, or two leaders that wait for ever."""
    file = tmp_path / "hosts.json"
    file.write_text(hosts)
    monkeypatch.setenv("MLX_HOSTFILE", str(file))
    monkeypatch.setenv("MLX_RANK", rank)
    with pytest.raises(InputError, match=message):
        check_hosts()


def test_a_host_file_of_the_launcher_is_taken(tmp_path, monkeypatch):
    """A launcher whose group is refused; a file that is missing."""
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    check_hosts()
    file = tmp_path / "hosts.json"
    monkeypatch.setenv("MLX_HOSTFILE", str(file))
    with pytest.raises(InputError, match="no readable file"):
        check_hosts()
    file.write_text(TWO)
    monkeypatch.setenv("MLX_RANK", "1")
    check_hosts()


def alone(folder, port: int) -> subprocess.Popen:
    """Rank 0 of two, whose other machine never comes."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"], [f"127.0.0.1:{free_ports(1)[0]}"]]))
    command = ["-m", "dspark_mlx.generate", "--model", str(FOLDER), "--distributed"]
    return subprocess.Popen(
        [sys.executable, *command, "--prompt-ids", "3"],
        env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )


@pytest.mark.slow
def test_ctrl_c_ends_a_leader_that_waits(tmp_path):
    """A process that only kill -9 ends: MLX waits in C for a machine that never comes."""
    process = alone(tmp_path, free_ports(1)[0])
    assert process.stderr is not None
    assert "rank 0 waits for the other machines" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path):
    """A traceback of MLX's for the most usual mistake."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = alone(tmp_path, taken.getsockname()[1])
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: distributed: found no connection ([ring] Couldn't bind" in errors
