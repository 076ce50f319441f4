"""Connections as HTTP allows them: half-closed, in pieces, one request behind another, no HTTP."""

from __future__ import annotations

import json
import socket
import time

import pytest
from helpers.http_served import MESSAGES, events, is_refusal, listening
from helpers.served import TEXT

pytest.importorskip("uvicorn", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")
CHAT = "/v1/chat/completions"
LONG = {"temperature": 4.0, "seed": 1, "max_tokens": 400, "logit_bias": {}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with listening(tmp_path_factory.mktemp("served"), body_timeout=5.0) as (address, decoder):
        yield address, decoder


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    return made


def request(version: str = "1.1", head: str = "", **body) -> bytes:
    content = json.dumps({"messages": MESSAGES, **body}).encode()
    lines = [f"POST {CHAT} HTTP/{version}", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}", *([head] if head else [])]
    return "\r\n".join([*lines, "", ""]).encode() + content


def read_all(made: socket.socket) -> bytes:
    found = b""
    while part := made.recv(1 << 16):
        found += part
    return found


def last_body(found: bytes) -> bytes:
    """The body of the final response."""
    return found.rpartition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_half_closed_connection_gets_its_answer(server, version):
    """`nc -N` and scripts that say that they send no more: no answer, and no word why."""
    with connect(server[0]) as made:
        made.sendall(request(version))
        made.shutdown(socket.SHUT_WR)
        found = read_all(made)
    statuses = [line.split()[1] for line in found.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses == ([b"100", b"200"] if version == "1.1" else [b"200"])
    assert json.loads(last_body(found))["choices"][0]["message"]["content"] == TEXT


def test_a_half_closed_stream_and_pipelined_requests(server):
    """Events that stop at the half-close; a second request on the connection that is dropped."""
    with connect(server[0]) as made:
        made.sendall(request(stream=True) + request(max_tokens=1))
        made.shutdown(socket.SHUT_WR)
        found = read_all(made)
    first, second = (part.partition(b"\r\n\r\n") for part in found.split(b"HTTP/1.1 200 OK")[1:])
    chunks = [line for line in first[2].decode().split("\r\n") if line.startswith(("data", ":"))]
    texts = [e["choices"][0]["delta"].get("content", "") for e in events("".join(chunks))[:-1]]
    assert "".join(texts) == TEXT and "[DONE]" in chunks[-1]
    assert json.loads(second[2])["usage"]["completion_tokens"] == 1


def test_a_request_that_is_cut_off_ends_its_connection(server):
    """A half of a body that is waited for until its time is up."""
    begun = time.monotonic()
    with connect(server[0]) as made:
        made.sendall(request()[:-5])
        made.shutdown(socket.SHUT_WR)
        assert read_all(made) == b""
    assert server[1].requests_now == (0, 0) and time.monotonic() - begun < 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_left_is_told_from_one_that_reads(server, stream):
    """An answer that is computed to its end for nobody, since the server waits for a half-open
    client."""
    address, decoder = server
    with connect(address) as made:
        made.sendall(request(stream=stream, **LONG))
        while decoder.requests_now == (0, 0):
            time.sleep(0.002)
    while decoder.requests_now != (0, 0):
        time.sleep(0.01)


def test_no_http_is_refused_in_json(server):
    """Plain text where a client reads an error's shape."""
    heads = b"X: " + b"x" * (1 << 17)
    broken = (
        request(head="Transfer-Encoding: chunked").replace(b"Content-Length", b"X-Length") + b"\r\n"
    )
    for sent in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\n" + heads, broken):
        with connect(server[0]) as made:
            made.sendall(sent)
            found = read_all(made)
        assert found.startswith(b"HTTP/1.1 400 ")
        assert is_refusal(CHAT, 400, json.loads(last_body(found)))


@pytest.mark.parametrize("head", ["", "Expect: 100-continue"])
def test_a_long_body_gets_its_refusal(server, head):
    """A reset in place of the answer for a client that sends its whole body first."""
    sent = request(head=head, user="x" * (9 << 20))
    with connect(server[0]) as made:
        made.sendall(sent)
        assert made.recv(100).startswith(b"HTTP/1.1 " + (b"100 " if head else b"413 "))
        made.sendall(request(head="Connection: close"))
        found = read_all(made)
    assert json.loads(last_body(found))["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: 127"])
def test_a_head_that_does_not_come(server, sent, monkeypatch):
    """A connection that is held for ever, until no file is left to open."""
    monkeypatch.setattr("dspark_mlx.server.connection._PATIENCE", 1.0)
    with connect(server[0]) as made:
        if sent:
            made.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):  # it may come in pieces
                part = made.recv(1 << 16)
                assert part, answer
                answer += part
        made.sendall(sent)
        assert read_all(made) == b""


def test_requests_in_pieces(server):
    """A body in chunks, a client that waits for 100, a letter cut between two packets."""
    whole = request(head="Expect: 100-continue", user="caf\u00e9 \U0001f600")
    head, _, body = whole.partition(b"\r\n\r\n")
    with connect(server[0]) as made:
        made.sendall(head + b"\r\n\r\n")
        assert made.recv(100).startswith(b"HTTP/1.1 100 ")
        made.sendall(body)
        assert made.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        content = json.dumps(
            {"messages": [{"role": "user", "content": "\u00e9"}]}, ensure_ascii=False
        )
        head = head.replace(
            b"Expect: 100-continue", b"Transfer-Encoding: chunked\r\nConnection: close"
        )
        made.sendall(
            b"\r\n".join(x for x in head.split(b"\r\n") if b"Length" not in x) + b"\r\n\r\n"
        )
        for byte in content.encode():
            made.sendall(b"1\r\n%c\r\n" % byte)
        made.sendall(b"0\r\n\r\n")
        found = read_all(made)
    assert json.loads(last_body(found))["choices"][0]["message"]["content"] == TEXT
