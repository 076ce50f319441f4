"""Refuses requests before their body is read: by Host, Origin, key and content type.

A page of any web site can send requests to a local server through its visitor's browser. Such a
request names a foreign origin, or a foreign host where the site's name was made to point here, or
it is not JSON, which a browser would ask about first.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

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
        """Pass the request on, without slashes behind its path, or refuse it."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        if scope["type"] == "http" and (refused := self._refusal(scope)) is not None:
            await error_response(refused, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers, method = Headers(scope=scope), scope["method"]
        host = headers.get("host", "")
        if host_name(host) not in self._options.hosts or len(headers.getlist("host")) != 1:
            return Refused(403, "Host: not a name of this server", "foreign_host")
        origin = headers.get("origin")
        if origin is not None and origin not in {*self._options.origins, f"http://{host}"}:
            return Refused(403, "Origin: pages of other sites may not call this server", "origin")
        if method == "OPTIONS":  # a browser's question, which carries no key
            return None
        if scope["path"] not in _OPEN and not self._has_key(headers):
            return Refused(401, "a valid API key is missing", "invalid_api_key")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            return Refused(415, "Content-Type: expected application/json", "content_type")
        return None

    def _has_key(self, headers: Headers) -> bool:
        if self._options.api_key is None:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), self._options.api_key.encode())


def host_name(host: str) -> str:
    """The name in a Host header, in lower case, without its port and IPv6's brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
