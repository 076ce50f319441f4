"""Refuses requests before their body is read: by Host, Origin, key and content type.

A page of any web site can send requests to a local server through its visitor's browser. Such a
request names a foreign origin, or a foreign host where the site's name was made to point here, or
it is not JSON, which a browser would ask about first.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import one_line
from .options import Options
from .refusals import Refused, error_response

_OPEN = ("/health",)


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        options: hosts, origins and the key.
    """

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its path as the routes have it, or refuse it."""
        if scope["type"] == "http":
            scope = {**scope, "path": plain_path(scope["path"])}
        if scope["type"] == "http" and (refused := self._refusal(scope)) is not None:
            await error_response(refused, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers, method = Headers(scope=scope), scope["method"]
        host = headers.get("host", "")
        if host_name(host) not in self._options.hosts or len(headers.getlist("host")) != 1:
            found = f"Host: found {one_line(host, 100) or 'none'}"
            expected = "a name of this server (--allowed-hosts)"
            return Refused(403, f"{found}; expected {expected}", "foreign_host")
        origin = headers.get("origin")
        if origin is not None and origin not in {*self._options.origins, f"http://{host}"}:
            found = f"Origin: found {one_line(origin, 100)}, a page of another site"
            return Refused(403, f"{found}; expected one of --allowed-origins", "origin")
        if method == "OPTIONS":  # a browser's question, which carries no key
            return None
        if scope["path"] not in _OPEN and not self._has_key(headers):
            return Refused(401, "a valid API key is missing", "invalid_api_key")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            found = f"Content-Type: found {one_line(kind, 100) or 'none'}"
            return Refused(415, f"{found}; expected application/json", "content_type")
        if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
            found = f"Content-Encoding: found {one_line(coding, 100)}"
            return Refused(415, f"{found}; expected none, plain JSON", "content_encoding")
        return None

    def _has_key(self, headers: Headers) -> bool:
        if self._options.api_key is None:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), self._options.api_key.encode())


def plain_path(path: str) -> str:
    """A path without slashes behind it, and without the scheme and host that proxies send."""
    if path.startswith(("http://", "https://")):
        path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
    return path.rstrip("/") or "/"


def host_name(host: str) -> str:
    """The name in a Host header, in lower case, without its port and IPv6's brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
