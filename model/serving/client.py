"""A client of the server that is used like an extractor. It needs the standard library alone."""

import http.client
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from model.errors import RunFailedError, UserError
from model.inference.keyphrase import Keyphrase
from model.serving.settings import TOKEN_VARIABLE
from model.serving.tokens import check_token

_REQUEST_TEXTS = 64
_CONNECTIONS = 2  # one request is computed while the next one travels
_TIMEOUT_S = 120.0
_PATIENCE_S = 120.0  # how long a busy server is asked again

Answer = TypeVar("Answer")


class _DeadlineError(RunFailedError):
    """The server had no result in time."""


class Client:
    """A server at a URL, through which texts are extracted in the order in which they come."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Ask the server for its limits.

        Args:
            url: of the server, as in `http://127.0.0.1:8000`.
            token: for a server that needs one.

        Raises:
            UserError: the URL or the token is none, or the server refuses the token.
            RunFailedError: no server of Tandem answers there.
        """
        no_url = UserError("--server: is no URL of a server; write for example http://127.0.0.1:8000")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna"), parts.path.encode("ascii")  # as a request encodes them
        except ValueError:
            raise no_url from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.username or " " in url:
            raise no_url
        if token:
            check_token(token, TOKEN_VARIABLE)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._url, self._path = f"{parts.scheme}://{host}{f':{port}' if port else ''}", parts.path.rstrip("/")
        self._connect = lambda: kind(host, port, timeout=_TIMEOUT_S)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connections = threading.local()
        self._most_texts = _REQUEST_TEXTS
        self._limits = self._ask("GET", "/v1/model", _parse_limits, threading.Event())

    def pipe(self, texts: Iterable[str], batch_size: int = _REQUEST_TEXTS) -> Iterator[list[Keyphrase]]:
        """Yield the keyphrases of each text, in the order of the texts.

        Args:
            texts: any iterable; it is read as results are consumed.
            batch_size: the most texts of a request; with 1, each text is answered before the next one is read.

        Raises:
            UserError: the server refuses a text.
            RunFailedError: the server does not answer, or is too busy for minutes.
        """
        window = 1 if batch_size == 1 else _CONNECTIONS
        pending: deque[Future[list[list[Keyphrase]]]] = deque()
        ended = threading.Event()
        pool = ThreadPoolExecutor(window, thread_name_prefix="client")
        try:
            for first, batch in self._batches(texts, batch_size):
                pending.append(pool.submit(self._extract, first, batch, ended))
                if len(pending) >= window:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:  # an error or Ctrl-C does not wait for the other request, which may ask a busy server for minutes
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the texts in batches within the limits, each with the number of its first text."""
        texts, first = iter(texts), 1
        size = max(1, min(size, self._limits["max_texts"]))
        while batch := list(islice(texts, min(size, self._most_texts))):
            # A character takes at most twelve bytes of JSON.
            longest = max(map(len, batch))
            step = max(1, self._limits["max_body"] // (12 * longest + 16) - 1)
            for begin in range(0, len(batch), step):
                yield first + begin, batch[begin : begin + step]
            first += len(batch)

    def _extract(self, first: int, texts: list[str], ended: threading.Event) -> list[list[Keyphrase]]:
        """Return the keyphrases of texts; what takes the server too long is sent again in halves, as later requests are."""
        try:
            return self._ask("POST", "/v1/extract", _parse_results, ended, {"texts": texts}, first)
        except _DeadlineError:
            half = len(texts) // 2
            if not half or ended.is_set():
                raise
            self._most_texts = min(self._most_texts, half)
            found = self._extract(first, texts[:half], ended)
            return found + self._extract(first + half, texts[half:], ended)

    def _ask(
        self,
        method: str,
        path: str,
        parse: Callable[[Any], Answer],
        ended: threading.Event,
        body: object = None,
        first: int = 1,
    ) -> Answer:
        """Return what a function reads from the answer to a request; a busy server is asked again, until `ended` is set."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            status, headers, content = self._send(method, path, body)
            busy = status in (429, 503) and time.monotonic() < until
            if not busy or ended.wait(min(_to_seconds(headers.get("Retry-After")), 10)):
                break
        try:
            answer = json.loads(content)
            if status == 200:
                return parse(answer)
            detail = answer["detail"]
        except (ValueError, KeyError, TypeError):  # another service
            answer, detail = {}, "the answer is not that of Tandem"
        if status == 401:
            raise UserError(f"{self._url}: {detail}; set {TOKEN_VARIABLE}, or name its file with --token-file")
        if 400 <= status < 429:
            where = f"text {first + answer['index']}: " if isinstance(answer.get("index"), int) else ""
            raise UserError(f"{self._url}: {where}{detail} (status {status})")
        failure = _DeadlineError if status == 504 else RunFailedError
        raise failure(f"{self._url}: {detail} (status {status})")

    def _send(self, method: str, path: str, body: object) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and content; a connection that the server has closed since is opened again."""
        content = None if body is None else json.dumps(body).encode()
        for attempt in (0, 1):
            kept = getattr(self._connections, "one", None)
            connection = kept or self._connect()
            self._connections.one = connection
            try:
                connection.request(method, self._path + path, content, self._headers)
                response = connection.getresponse()
                return response.status, response.headers, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._connections.one = None
                if kept is None or attempt or isinstance(error, TimeoutError):
                    raise RunFailedError(f"{self._url}: the server does not answer ({error}); is it running?") from None
        raise AssertionError("unreachable")


def _parse_limits(answer: Any) -> dict[str, int]:
    return {name: int(answer["limits"][name]) for name in ("max_texts", "max_body")}


def _parse_results(answer: Any) -> list[list[Keyphrase]]:
    return [[Keyphrase(**each) for each in result["keyphrases"]] for result in answer["results"]]


def _to_seconds(retry_after: str | None) -> float:
    """Return the seconds that a `Retry-After` header says; 1 where it says none."""
    try:
        seconds = float(retry_after or 1)
    except ValueError:
        return 1.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 1.0
