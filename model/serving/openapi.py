"""The parts of `/openapi.json` that FastAPI cannot infer, since bodies are read and written without it for speed."""

from typing import Any

from fastapi import FastAPI

from model.serving.contract import PROBLEM_TYPE, ExtractRequest, ExtractResponse, ModelBody, ProblemBody
from model.serving.settings import OPEN_PATHS, ServeSettings

_MEANINGS = {
    400: "The body is not JSON, or the Host header is not allowed",
    401: "No token, or an unknown one",
    403: "The server has no tokens",
    409: "The bundle or the tokens cannot be used; the old ones stay",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    422: "The body is not a request within the limits; index says which text",
    429: "Too many requests or texts; see Retry-After",
    503: "The server is stopping or not ready, or a replica died while it reloaded",
    504: "No result within the deadline",
}


def _responses(success: type | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    problems: dict[int | str, dict[str, Any]] = {
        status: {
            "description": _MEANINGS[status],
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for status in statuses
    }
    return problems if success is None else {200: {"model": success}, **problems}


# Arguments of FastAPI's route decorators.
EXTRACT: dict[str, Any] = {"responses": _responses(ExtractResponse, 400, 401, 413, 415, 422, 429, 503, 504)}
MODEL: dict[str, Any] = {"responses": _responses(ModelBody, 400, 401, 503)}
RELOAD: dict[str, Any] = {"responses": _responses(ModelBody, 400, 401, 403, 409, 503)}
METRICS: dict[str, Any] = {"responses": {200: {"content": {"text/plain": {}}}, **_responses(None, 400, 401)}}
OPEN: dict[str, Any] = {"responses": _responses(None, 400, 503)}


def complete_schema(app: FastAPI, settings: ServeSettings, with_tokens: bool) -> None:
    """Add the request's schema with its limits, the schema of errors and the tokens to the application's schema."""
    inferred = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = inferred()
            schema["components"]["schemas"]["ProblemBody"] = ProblemBody.model_json_schema()
            schema["paths"]["/v1/extract"]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": _request_schema(settings)}},
            }
            if with_tokens:
                schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values() if path not in OPEN_PATHS else ():
                        operation["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _request_schema(settings: ServeSettings) -> dict[str, Any]:
    """Return the schema of the body of `/v1/extract`: exactly one of `text` and `texts`."""
    schema = ExtractRequest.model_json_schema()
    text = {"type": "string", "maxLength": settings.max_characters}
    texts = {"type": "array", "items": text, "maxItems": settings.max_texts}
    schema["properties"] |= {"text": text, "texts": texts}
    schema["oneOf"] = [{"required": ["text"]}, {"required": ["texts"]}]
    return schema
