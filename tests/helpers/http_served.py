"""The served toy behind HTTP: in this process, or on a loopback port for real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dspark_mlx.decoder import Decoder
from helpers.served import served_decoder

MESSAGES = [{"role": "user", "content": "hi"}]
WEATHER = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": WEATHER}]
BASE = "http://127.0.0.1:8080"


@contextlib.contextmanager
def client(
    folder: Path, limits: Any = None, admission: Any = None, **options: Any
) -> Iterator[tuple[Any, Decoder]]:
    """A client of the application in this process, and its decoder."""
    from starlette.testclient import TestClient

    from dspark_mlx.server.app import make_app
    from dspark_mlx.server.options import Options

    decoder = served_decoder(folder, admission=admission)
    if limits is not None:
        decoder.limits = limits
    app = make_app(decoder, Options("toy", **options))
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as made:
        yield made, decoder
    decoder.engine.target.close()


@contextlib.contextmanager
def listening(folder: Path, limits: Any = None, **options: Any) -> Iterator[tuple[str, Decoder]]:
    """The address of a uvicorn on a loopback port, and its decoder."""
    import uvicorn

    from dspark_mlx.server.app import make_app
    from dspark_mlx.server.connection import Connection
    from dspark_mlx.server.options import Options

    decoder = served_decoder(folder)
    if limits is not None:
        decoder.limits = limits
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            make_app(decoder, Options("toy", **options)),
            log_level="error",
            http=Connection,
            ws="none",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", decoder
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
    decoder.engine.target.close()


def events(text: str) -> list[Any]:
    """The data of server-sent events; "[DONE]" as it is."""
    found = []
    for block in text.split("\n\n"):
        lines = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        found += [line if line == "[DONE]" else json.loads(line) for line in lines]
    return found


def is_refusal(path: str, status: int, body: Any) -> bool:
    """Whether a response is an error in the shape of its path's dialect."""
    if not 400 <= status < 600 or not isinstance(body, dict):
        return False
    if path.startswith("/v1/messages"):
        error = body.get("error")
        return body.get("type") == "error" and isinstance(error, dict) and _said(error)
    error = body.get("error")
    return (
        isinstance(error, dict)
        and set(error) == {"message", "type", "param", "code"}
        and _said(error)
    )


def _said(error: dict[str, Any]) -> bool:
    return bool(error["message"]) and isinstance(error["message"], str) and bool(error["type"])
