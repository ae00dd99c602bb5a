"""What every request passes before it reaches a route: who asks, how many there are, and how long they take.

It is the innermost place that sees all requests, so it also counts them and turns an unforeseen error into status 500.
"""

import asyncio
import logging
import time
import traceback
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.serving.contract import ProblemError
from model.serving.service import Service
from model.serving.settings import OPEN_PATHS, is_loopback

ROUTES = (*OPEN_PATHS, "/v1/extract", "/v1/model", "/v1/reload", "/metrics", "/openapi.json")
# A client that asks again at once would otherwise keep the event loop, and so the interpreter's lock, from extraction.
_REFUSAL_S = 0.1
# A connection that is closed while its client still sends is reset, and the client never reads why it was refused.
_DISCARDED_BYTES = 64 * 2**20
_DISCARDING_S = 2.0
_log = logging.getLogger("tandem.serve")
_SAFETY = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class Gate:
    """An ASGI middleware in front of the routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._in_flight = self._extracting = 0
        service.metrics.in_flight.set_function(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, unread = time.perf_counter(), 0, _sends_body(scope)

        async def receive_checked() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def send_checked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if unread:
                    await _discard(receive)
                if status == 429:
                    self._service.refused_at = time.monotonic()
                    await asyncio.sleep(_REFUSAL_S)
                message["headers"] = [*message["headers"], *_SAFETY]
                if self._service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._in_flight += 1
        try:
            await self._answer(scope, receive_checked, send_checked)
        except ProblemError as problem:
            await problem.response()(scope, receive, send_checked)
        except Exception as error:  # its message may hold a part of a text
            frames = "".join(traceback.format_tb(error.__traceback__))
            _log.error("a request failed with %s\n%s", type(error).__name__, frames)
            if not status:
                failure = ProblemError(500, "the server failed; its log has the place")
                await failure.response()(scope, receive, send_checked)
        finally:
            self._in_flight -= 1
            self._count(scope, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or raise ProblemError."""
        path = scope["path"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        tokens = self._service.tokens
        if tokens is None and not self._service.settings.any_host:
            _require_this_machine(headers.get(b"host", b""))
        if tokens is not None and path not in OPEN_PATHS and not tokens.accept(headers.get(b"authorization", b"")):
            detail = "a token is needed: send the header Authorization: Bearer TOKEN"
            raise ProblemError(401, detail, headers={"WWW-Authenticate": "Bearer"})
        if path == "/v1/extract":
            await self._extract(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _extract(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let some requests through at a time."""
        if self._extracting >= self._service.settings.max_requests:
            raise ProblemError(429, "too many requests at a time; try again in 1 s", headers={"Retry-After": "1"})
        self._extracting += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._extracting -= 1

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in ROUTES else "other"  # a path may hold anything
        self._service.metrics.on_request(route, status, seconds)
        if self._service.settings.access_log:
            _log.info("%s %s %d %.1f ms", scope["method"], route, status, 1000 * seconds)


def _sends_body(scope: Scope) -> bool:
    """Return whether a client sends a body in any case; with `Expect`, it waits until somebody reads it."""
    names = {name for name, _ in scope["headers"]}
    return b"expect" not in names and not names.isdisjoint({b"content-length", b"transfer-encoding"})


async def _discard(receive: Receive) -> None:
    """Read what is left of a body, within limits."""
    left = _DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDING_S):
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])


def _require_this_machine(host: bytes) -> None:
    """Raise ProblemError unless a `Host` header names this machine.

    Without tokens, a page of a foreign site could otherwise reach the server through a name that it lets resolve to
    127.0.0.1 (DNS rebinding).
    """
    name = host.decode("latin-1").strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if not is_loopback(name):
        raise ProblemError(400, "without tokens, the server answers to localhost alone; start it with --token-file")
