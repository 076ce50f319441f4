"""A server on this machine that speaks the few endpoints of the Hub that downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves one repository; remembers what was asked for.

    Attributes:
        files: content by path.
        asked: paths whose content was asked for, with the byte that it was to start at.
        broken: a path whose first answer ends halfway. missing: a path that is answered with 500.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files = repo, files
        self.asked: list[tuple[str, int]] = []
        self.broken, self.missing = "", ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Nothing: a client that goes away is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        api = f"/api/models/{hub.repo}"
        if path in (f"{api}/revision/main", f"{api}/revision/v1", f"{api}/revision/{COMMIT}", api):
            self._json({"id": hub.repo, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{api}/tree/"):
            rows = [
                {"type": "file", "path": p, "size": len(c), "oid": _oid(c)}
                for p, c in hub.files.items()
            ]
            self._json(rows)
        elif found := re.fullmatch(rf"/{hub.repo}/resolve/[^/]+/(.+)", path):
            self._file(found[1], body)
        else:
            self._json({"error": "Repository not found"}, 404, "RepoNotFound")

    def _json(self, value: object, status: int = 200, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(content)

    def _file(self, path: str, body: bool) -> None:
        hub = self.server
        if path == hub.missing and body:
            return self._json({"error": "down"}, 500)
        if path not in hub.files:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        content = hub.files[path]
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            hub.asked.append((path, start))
            half = len(content) // 2 if path == hub.broken and not start else len(content)
            self.wfile.write(content[start:half])
            if half < len(content):
                self.close_connection = True


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
