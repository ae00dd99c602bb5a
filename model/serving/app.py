"""The ASGI application. It runs under uvicorn in one process and, unchanged, in each replica of Ray Serve."""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from model.errors import RunFailedError, UserError
from model.serving.contract import ModelBody, ProblemError, parse_request, to_body
from model.serving.extraction import LoadedModel
from model.serving.gate import Gate
from model.serving.metrics import CONTENT_TYPE
from model.serving.openapi import EXTRACT, METRICS, MODEL, OPEN, RELOAD, complete_schema
from model.serving.service import Service

Reload = Callable[[], Awaitable[None]]


class _Route(APIRoute):
    """A route whose endpoint takes the request and returns the response, past FastAPI's dependencies: 0.25 ms, not 0.35."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def build_app(service: Service, reload_all: Reload | None = None) -> FastAPI:
    """Return the application around a service.

    Args:
        service: loaded, and closed when the application ends.
        reload_all: reloads every server of a group, for `POST /v1/reload`; by default the service alone.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(title="Tandem", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.router.route_class = _Route
    _add_routes(app, service, reload_all)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:  # outermost, so that refusals have its headers too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    complete_schema(app, service.settings, service.tokens is not None)
    return app


def _add_routes(app: FastAPI, service: Service, reload_all: Reload | None) -> None:
    @app.post("/v1/extract", **EXTRACT)
    async def extract(request: Request) -> Response:
        """Find the keyphrases of texts."""
        return await _extract(service, request)

    @app.get("/v1/model", **MODEL)
    async def model(request: Request) -> Response:
        """Describe the bundle in use: its card, its metrics, the digest of its weights, and the limits of requests."""
        return _describe(service, service.model)

    @app.post("/v1/reload", **RELOAD)
    async def reload(request: Request) -> Response:
        """Read tokens and bundle again. A bundle that does not load leaves the old one at work."""
        if service.tokens is None:
            raise ProblemError(403, "reloading needs a token: start the server with --token-file, or send it SIGHUP")
        try:
            await (reload_all or service.reload)()
        except UserError as error:
            raise ProblemError(409, str(error)) from None
        except RunFailedError as error:
            raise ProblemError(503, str(error)) from None
        return _describe(service, service.model)

    @app.head("/healthz", include_in_schema=False)  # as some load balancers ask
    @app.get("/healthz", **OPEN)
    async def healthz(request: Request) -> Response:
        """Say that the process lives and can extract."""
        if not service.alive:
            raise ProblemError(503, "the process that extracts has ended; start the server again")
        return JSONResponse({"status": "alive"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", **OPEN)
    async def readyz(request: Request) -> Response:
        """Say whether requests are answered."""
        if not service.ready:
            raise ProblemError(503, "the server is stopping or not ready")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", **METRICS, response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Return the counters in the format of Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        content, policy = read_page()
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": policy})


@cache
def read_page() -> tuple[bytes, str]:
    """Return the page for people and its Content-Security-Policy: it runs its own script, and talks to its own server alone."""
    content = (Path(__file__).parent / "page.html").read_bytes()
    script, style = (_hash_of(tag, content) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy


def _hash_of(tag: bytes, content: bytes) -> str:
    [inside] = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
    return f"sha256-{b64encode(sha256(inside).digest()).decode()}"


async def _extract(service: Service, request: Request) -> Response:
    try:
        async with asyncio.timeout(service.settings.deadline):
            body = await _read_body(request, service.settings.max_body)
            parsed, texts = parse_request(body, service.settings)
            found = await service.extract(texts)
    except TimeoutError:
        raise ProblemError(
            504, f"no result within {service.settings.deadline:g} s; send fewer texts, or later"
        ) from None
    except ClientDisconnect:
        return Response(status_code=400)  # to nobody
    return Response(to_body(parsed, texts, found), media_type="application/json")


async def _read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request. Raises ProblemError where it is too large or not JSON by its headers."""
    headers = request.headers
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ProblemError(415, "send the body with Content-Type: application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(415, "send the body without Content-Encoding")
    too_large = ProblemError(
        413, f"the body has more than {limit} bytes; send fewer texts", headers={"Connection": "close"}
    )
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def _describe(service: Service, model: LoadedModel | None) -> Response:
    if model is None:
        raise ProblemError(503, "the server is not ready", headers={"Retry-After": "1"})
    limits = {name: float(value) for name, value in service.settings.limits().items()}
    body = ModelBody(**vars(model.info), limits=limits)
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error.response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router raises: an unknown path or method."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    return ProblemError(error.status_code, f"{phrase}; see /openapi.json", headers=dict(error.headers or {})).response()
