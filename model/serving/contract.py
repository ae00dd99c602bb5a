"""The JSON of the HTTP interface: requests, results, and errors as problem details (RFC 9457).

An error never contains a text or a token.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from model.data.characters import Unit, from_characters
from model.inference.keyphrase import Keyphrase
from model.serving.settings import ServeSettings

PROBLEM_TYPE = "application/problem+json"


class ProblemError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        detail: what is wrong, and how to mend it.
        index: of the text that is wrong, from 0.
        headers: of the response.
    """

    def __init__(
        self, status: int, detail: str, *, index: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.index, self.headers = status, detail, index, headers or {}

    def response(self) -> Response:
        """Return the response."""
        body: dict[str, str | int] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.index is not None:
            body["index"] = self.index
        return Response(json.dumps(body), self.status, self.headers, PROBLEM_TYPE)


class ExtractRequest(BaseModel):
    """The body of `POST /v1/extract`: either `texts` or a single `text`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Annotated[list[str], Field(fail_fast=True)] = []
    text: str = ""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    offsets: Unit = "characters"

    def all_texts(self) -> list[str]:
        """Return the texts. Raises ProblemError where there is not exactly one of `texts` and `text`."""
        given = {"texts", "text"} & self.model_fields_set
        if len(given) != 1:
            raise ProblemError(422, "give either texts, a list of strings, or text, a string")
        return self.texts if "texts" in given else [self.text]


class KeyphraseBody(BaseModel):
    """A keyphrase: `text[start:end]` in the unit of `offsets`, and its confidence in 0 to 1."""

    text: str
    start: int
    end: int
    score: float


class ResultBody(BaseModel):
    """The keyphrases of one text, in the order of their first characters."""

    keyphrases: list[KeyphraseBody]


class ExtractResponse(BaseModel):
    """The answer of `POST /v1/extract`: a result for each text, in the order of the texts."""

    results: list[ResultBody]


class ModelBody(BaseModel):
    """The answer of `GET /v1/model` and `POST /v1/reload`."""

    card: str
    metrics: dict[str, Any]
    weights_sha256: str
    limits: dict[str, float]


class ProblemBody(BaseModel):
    """An error (RFC 9457); `index` is that of the text that is wrong."""

    type: str
    title: str
    status: int
    detail: str
    index: int | None = None


def parse_request(body: bytes, settings: ServeSettings) -> tuple[ExtractRequest, list[str]]:
    """Return a request and its texts. Raises ProblemError where the body is not a request within the limits."""
    try:
        request = ExtractRequest.model_validate_json(body)
    except ValidationError as error:
        raise _to_problem(error) from None
    texts = request.all_texts()
    if len(texts) > settings.max_texts:
        raise ProblemError(
            422, f"has {len(texts)} texts, and at most {settings.max_texts} are allowed; send several requests"
        )
    limit = settings.max_characters
    for index, text in enumerate(texts):
        if len(text) > limit:
            raise ProblemError(
                422, f"text {index} has {len(text)} characters, and at most {limit} are allowed", index=index
            )
    return request, texts


def _to_problem(error: ValidationError) -> ProblemError:
    """Return what is wrong with a body, without the value that is wrong."""
    unknown = ProblemError(422, f"the body has an unknown field; known are {', '.join(ExtractRequest.model_fields)}")
    if error.error_count() > len(ExtractRequest.model_fields):  # one each at most; errors() of many takes seconds
        return unknown
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where, message = first["loc"], first["msg"]
    if first["type"] == "json_invalid":
        return ProblemError(400, f"the body is not JSON in UTF-8: {message.removeprefix('Invalid JSON: ')}")
    if not where:
        return ProblemError(422, "the body is not a JSON object")
    if first["type"] == "extra_forbidden":  # whose name may be anything
        return unknown
    index = where[1] if len(where) > 1 and isinstance(where[1], int) else None
    place = str(where[0]) if index is None else f"{where[0]}[{index}]"
    return ProblemError(422, f"{place}: {message}", index=index)


def to_body(request: ExtractRequest, texts: Sequence[str], found: Sequence[list[Keyphrase]]) -> bytes:
    """Return the keyphrases of texts as the JSON of a response."""
    results = []
    for text, keyphrases in zip(texts, found, strict=True):
        if request.min_score:
            keyphrases = [each for each in keyphrases if each.score >= request.min_score]
        if request.offsets != "characters" and keyphrases:
            spans = from_characters([(each.start, each.end) for each in keyphrases], text, request.offsets)
            pairs = zip(keyphrases, spans, strict=True)
            keyphrases = [Keyphrase(each.text, *span, each.score) for each, span in pairs]
        results.append({"keyphrases": [each.as_record() for each in keyphrases]})
    return to_json({"results": results})
