"""The ASGI application: its paths, and what every refusal becomes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..decoder import Decoder
from ..errors import BusyError, ClosedError, InputError, one_line
from . import anthropic_messages, openai_chat, openai_completions, openai_responses
from .asked import Asked
from .events import Writer, read_body, respond
from .fields import Fields
from .generation import Generation
from .guard import Guard
from .metrics import CONTENT_TYPE
from .options import Options
from .refusals import Refused, error_response, refusal
from .responses_writer import ResponseWriter

Read = Callable[[Fields, Generation], Asked]
Write = Callable[[Fields, Generation], Writer]
Handler = Callable[[Request, Exception], Response]
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def make_app(decoder: Decoder, options: Options) -> Starlette:
    """The application of a decoder, which is closed when the application shuts down.

    Args:
        decoder: the decoder.
        options: limits and defaults.
    """
    generation = Generation(decoder, options)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(decoder.close)

    chat = openai_chat.read, openai_chat.ChatWriter
    dialects: dict[str, tuple[Read, Write]] = {
        "/v1/chat/completions": chat,
        "/chat/completions": chat,  # mlx_lm.server has it too
        "/v1/completions": (openai_completions.read, openai_completions.CompletionWriter),
        "/v1/responses": (openai_responses.read, ResponseWriter),
        "/v1/messages": (anthropic_messages.read, anthropic_messages.MessageWriter),
    }
    routes = [
        Route(path, _answering(generation, *dialect), methods=["POST"])
        for path, dialect in dialects.items()
    ]
    routes += [
        Route("/v1/messages/count_tokens", _counting(generation), methods=["POST"]),
        *_reading(generation),
    ]
    middleware = [Middleware(Guard, options=options)]
    if options.origins:
        named = {"allow_origins": sorted(options.origins), "allow_headers": ["*"]}
        middleware.append(Middleware(CORSMiddleware, allow_methods=["*"], **cast(Any, named)))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers=cast(Any, _handlers(generation)),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # the guard takes them off
    return app


def _answering(generation: Generation, read: Read, write: Write) -> Endpoint:
    async def answer(request: Request) -> ASGIApp:
        body = await read_body(request, generation.options)
        asked, writer = read(body, generation), write(body, generation)
        running = await generation.start(asked)
        response = await respond(request, generation, running, writer)
        generation.metrics.response(request.url.path, 200)
        return response

    return answer


def _counting(generation: Generation) -> Endpoint:
    async def count(request: Request) -> Response:
        body = await read_body(request, generation.options)
        counted = await asyncio.to_thread(anthropic_messages.count_tokens, body, generation)
        return JSONResponse(counted)

    return count


def _reading(generation: Generation) -> list[Route]:
    """Paths that only say something."""
    name = generation.options.name
    begun = int(time.time())
    # The fields of both dialects, which have this path in common.
    model = {"id": name, "object": "model", "created": begun, "owned_by": "local"}
    created = datetime.fromtimestamp(begun, UTC).isoformat()
    model |= {"type": "model", "display_name": name, "created_at": created}
    page = {"object": "list", "data": [model], "has_more": False}
    page |= {"first_id": name, "last_id": name}

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> Response:
        return JSONResponse(page)

    async def one_model(request: Request) -> Response:
        if request.path_params["id"] != name:
            raise Refused(404, f"no such model; this server has {name}", "model_not_found")
        return JSONResponse(model)

    async def metrics(request: Request) -> Response:
        return Response(generation.metrics.text(), headers={"content-type": CONTENT_TYPE})

    return [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{id:path}", one_model),
        Route("/metrics", metrics),
    ]


def _handlers(generation: Generation) -> dict[Any, Handler]:
    folder = str(generation.decoder.target_folder)

    def refuse(request: Request, error: Exception) -> Response:
        refused = refusal(error, folder=folder)
        known = any(route.path == request.url.path for route in _paths(request))
        generation.metrics.response(request.url.path if known else "other", refused.status)
        return error_response(refused, request.url.path)

    def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = refuse(request, _of_http(request, error))
        response.headers.update(error.headers or {})
        return response

    def broken(request: Request, error: Exception) -> Response:
        # The error itself goes to the log and not to the client.
        return refuse(request, Refused(500, "the server failed; its log says more", "failed"))

    def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    handled = (InputError, BusyError, ClosedError, Refused)
    return {
        **dict.fromkeys(handled, refuse),
        HTTPException: of_http,
        ClientDisconnect: gone,
        500: broken,
    }


def _of_http(request: Request, error: HTTPException) -> Refused:
    """Starlette's own refusals, which are only words for their status, with what was found."""
    path, headers = one_line(request.url.path, 100), error.headers or {}
    if error.status_code == 404:
        known = ", ".join(route.path for route in _paths(request) if "{" not in route.path)
        return Refused(404, f"path: found {path}; expected one of {known}", "unknown_url")
    if error.status_code == 405:
        said = f"method: found {request.method} {path}; expected {headers.get('Allow')}"
        return Refused(405, said, "method_not_allowed")
    return Refused(error.status_code, error.detail)


def _paths(request: Request) -> list[Route]:
    return [route for route in request.app.routes if isinstance(route, Route)]
