"""Refusals in the error shapes of OpenAI and Anthropic."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from ..errors import BusyError, ClosedError, InputError, MemoryLimitError

_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class Refused(Exception):
    """A request that is refused, or an answer that ends, with an HTTP status.

    Args:
        status: the HTTP status.
        message: one line for the client.
        code: a word for programs, in OpenAI's shape.
        param: the field at fault, in OpenAI's shape.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def refusal(error: Exception, target: str = "", folder: str = "") -> Refused:
    """What a client is told of an error of the decoder.

    Args:
        error: `Refused`, `InputError`, `BusyError` or `ClosedError`.
        target: the name of the target in errors: what it does wrong is not the client's fault.
        folder: the target's folder, which is not shown to clients.
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, BusyError):
        return Refused(429, str(error), "queue_full")
    if isinstance(error, ClosedError):
        return Refused(503, "the server is shutting down", "shutting_down")
    if isinstance(error, MemoryLimitError):
        return Refused(503 if error.later else 413, str(error), "out_of_memory")
    assert isinstance(error, InputError)
    message = str(error).replace(folder, "target") if folder else str(error)
    if target and error.where == target:
        return Refused(500, message, "target_failed")
    return Refused(400, message, "invalid_value", error.where if error.where != folder else None)


def is_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's dialect."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_body(refused: Refused, anthropic: bool) -> dict[str, Any]:
    """A refusal as JSON in the dialect's shape."""
    message = str(refused)
    if anthropic:
        kind = _ANTHROPIC.get(refused.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    fallback = "server_error" if refused.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": message,
            "type": _OPENAI.get(refused.status, fallback),
            "param": refused.param,
            "code": refused.code,
        }
    }


def error_response(refused: Refused, path: str) -> JSONResponse:
    """A refusal as a response; one of a full queue says when to try again."""
    headers = {"retry-after": "1"} if refused.status in (429, 503) else {}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refused.status == 408:
        headers["connection"] = "close"  # what is left of the body is not waited for
    body = error_body(refused, is_anthropic(path))
    return JSONResponse(body, refused.status, headers)
