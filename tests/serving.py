"""A server for tests: in this process, or as a user starts it."""

import asyncio
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from helpers import ROOT

TOKEN = "planted-token-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
TEXT = "Sirens outside. Evacuated from Zorvalia, then 😀 a late goal by Brenwick Herons"


@functools.cache
def shared_model(bundle: str, device: str) -> Any:
    """A loaded bundle, whose process tests share: each takes seconds to start."""
    from model.serving.extraction import LoadedModel

    return LoadedModel(bundle, device)


def ask(
    settings: Any, act: Callable[[httpx.AsyncClient, Any], Awaitable[Any]], service: Any = None, host: str = "127.0.0.1"
) -> Any:
    """Returns what a function returns that asks an application in this process, with the service behind it."""
    from model.serving.app import build_app
    from model.serving.service import Service

    async def run() -> Any:
        server = service or Service(settings)
        server.model = server.model or shared_model(settings.bundle, settings.device)
        app = build_app(server)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await act(client, server)

    return asyncio.run(run())


def token_file(folder: Path, *tokens: str) -> str:
    """A file of tokens."""
    path = folder / "tokens"
    path.write_text("# who may ask\n" + "".join(f"{token}\n" for token in tokens))
    return str(path)


class Process:
    """A server as a process; `log` is what it wrote to stderr until it ended."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        """Waits until the log has a text."""
        until = time.monotonic() + 180
        while text not in self.log:
            assert time.monotonic() < until and self.process.poll() is None, self.log
            time.sleep(0.02)


@contextmanager
def starting(bundle: str, folder: Path, *arguments: str, port: int = 0, **environment: str) -> Iterator[Process]:
    """A server that `python -m jobs serve` starts, at a free port where none is given; it is not ready yet."""
    log = folder / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "serve", bundle, "--port", str(port), *arguments],
            cwd=ROOT,
            stderr=stderr,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
    try:
        yield Process(process, "", log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running(bundle: str, folder: Path, *arguments: str, port: int = 0, **environment: str) -> Iterator[Process]:
    """A server that `python -m jobs serve` started, at a free port where none is given."""
    with starting(bundle, folder, *arguments, port=port, **environment) as server:
        server.wait_for("is served at ")
        server.url = re.search(r"is served at (http[^\s;]+)", server.log)[1]  # type: ignore[index]
        wait_until_open(server.url)
        yield server


def wait_until_open(url: str) -> None:
    """Waits until a server answers at all."""
    until = time.monotonic() + 180
    while True:
        try:
            httpx.get(f"{url}/healthz", verify=False)
            return
        except httpx.TransportError:
            assert time.monotonic() < until
            time.sleep(0.02)


def found_of(answer: httpx.Response) -> list[list[tuple[str, int, int]]]:
    """The keyphrases of an answer without their scores."""
    assert answer.status_code == 200, answer.text
    results = json.loads(answer.content)["results"]
    return [[(each["text"], each["start"], each["end"]) for each in result["keyphrases"]] for result in results]


class Load:
    """Threads that ask for keyphrases until they are stopped, each on a connection of its own."""

    def __init__(self, url: str, headers: dict[str, str], threads: int = 4) -> None:
        self.answers: list[httpx.Response] = []
        self.refused: list[Exception] = []
        self._url, self._headers, self._stop = f"{url}/v1/extract", headers, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with httpx.Client(headers=self._headers, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(client.post(self._url, json={"texts": [TEXT] * 3}))
                except httpx.TransportError as error:
                    self.refused.append(error)
                    return

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        """Waits for more answers."""
        target = len(self.answers) + answers
        while len(self.answers) < target:
            assert not self.refused, self.refused
            self._stop.wait(0.01)
