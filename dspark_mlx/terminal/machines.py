"""Meets the machines that mlx.launch has started: not for ever, and in one line where it fails."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from ..errors import InputError
from ..numbers import shown
from ..system.files import read_text
from ..system.strict_json import parse_json
from ..targets.deepseek_v4.machines import PATIENCE, Machines

_HOSTS, _RANK = "MLX_HOSTFILE", "MLX_RANK"
_ADDRESS = re.compile(r".+:\d+")


def meet_machines() -> Machines:
    """The machines of this process' group, once all of them are there.

    Raises:
        InputError: there is no group, its host file is none, or a machine cannot be reached.
    """
    check_hosts()
    if os.environ.get(_RANK):
        most = f"{PATIENCE // 60} minutes at most"
        print(f"rank {os.environ[_RANK]} waits for the other machines, {most}", file=sys.stderr)
    try:
        with _outside_python():
            group = mx.distributed.init()
    except RuntimeError as error:
        found = f"no connection ({error})"
        hint = "Is the port taken, or another process not started?"
        raise InputError("distributed", found, "machines that reach each other", hint) from error
    return Machines(group)


def check_hosts() -> None:
    """Refuse a host file that MLX's ring cannot read, or ends the process over.

    Raises:
        InputError: it is no list of addresses, or the rank has none of them.
    """
    if not (name := os.environ.get(_HOSTS)):
        return
    path, example = Path(name), 'addresses by rank, as [["10.0.0.1:5000"], ["10.0.0.2:5000"]]'
    hosts = parse_json(read_text(path, example), path)
    lists = (
        isinstance(hosts, list) and hosts and all(each and isinstance(each, list) for each in hosts)
    )
    if not lists or not all(
        isinstance(one, str) and _ADDRESS.fullmatch(one) for each in hosts for one in each
    ):
        hint = "mlx.launch makes it of its own --hostfile."
        raise InputError(path, shown(hosts), example, hint)
    rank = os.environ.get(_RANK, "")
    if not rank.isdecimal() or int(rank) >= len(hosts):
        raise InputError(_RANK, shown(rank), f"0 to {len(hosts) - 1}, an address of {path}")


@contextlib.contextmanager
def _outside_python() -> Iterator[None]:
    """A call in which no Python runs, so that Ctrl-C and time must end the process without it."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if main else None
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(PATIENCE, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if main:
                signal.signal(signal.SIGINT, before)
