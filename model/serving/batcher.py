"""Dynamic batching: texts of many requests, extracted together by one thread.

A request is a job in a bounded queue. The thread takes texts from the front up to a number of tokens, so a large request
goes through several batches and a batch holds many small requests. The extractor gives a text the same keyphrases in any
company, so a result does not depend on who shares the batch. All texts of a job are extracted by the model that the job was
submitted with, also when the server has a new one since.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from model.inference.keyphrase import Keyphrase
from model.serving.extraction import LoadedModel

_BYTES_PER_TOKEN = 4
_RATE_MEMORY = 0.8  # of the tokens per second, the share that older batches have
# Of the time that the last batch took. Requests of 64 connections then share batches instead of taking turns by halves, of
# which small batches are slower: 400 instead of 290 texts/s of single texts on 2 cores.
_WAIT_SHARE = 0.1
_RATE_TOKENS = 256  # of the smallest batch that says how fast a queue is worked off: single texts take longer a token


class QueueFullError(Exception):
    """There is no room for a request; `retry_s` says when there may be."""

    def __init__(self, retry_s: float) -> None:
        super().__init__("the queue is full")
        self.retry_s = retry_s


class BatchStats(NamedTuple):
    """A finished batch, for metrics."""

    texts: int
    tokens: int
    requests: int
    seconds: float


class _Job:
    """The texts of a request, and what was found in them so far."""

    def __init__(self, model: LoadedModel, texts: list[str], done: "asyncio.Future[list[list[Keyphrase]]]") -> None:
        self.model, self.texts, self.done = model, texts, done
        self.came = time.monotonic()
        self.taken = 0  # texts that are in a batch or done
        self.found: list[list[Keyphrase]] = []


_Part = tuple[_Job, int, int]  # the texts [start, end) of a job


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, without tokenizing it: one in four bytes."""
    return 1 + (len(text) if text.isascii() else len(text.encode("utf-8", "replace"))) // _BYTES_PER_TOKEN


class Batcher:
    """A queue of texts and the thread that extracts them.

    `extract` is called in one event loop; the thread answers there.
    """

    def __init__(
        self,
        batch_tokens: int,
        wait_s: float,
        max_queue: int,
        max_wait_s: float = math.inf,
        on_batch: Callable[[BatchStats], None] = lambda _: None,
        overloaded: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            batch_tokens: about the most tokens of a batch; a single text may have more.
            wait_s: how long the thread waits for more texts, at most, before it begins a batch that is not full. It waits
                for a tenth of the time that its last batch took: clients that were answered then send their next requests.
            max_queue: texts that may wait.
            max_wait_s: while the queue will take longer, or the oldest job has waited for longer, no other is taken. Under
                overload, those that are taken still get a quick answer.
            on_batch: called in the thread after each batch, before its requests are answered.
            overloaded: whether to leave a core to the event loop, see `LoadedModel.extract`.
        """
        self._batch_tokens, self._wait_s = batch_tokens, wait_s
        self._on_batch, self._overloaded = on_batch, overloaded
        self._max_queue, self._max_wait_s = max_queue, max_wait_s
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._waiting = self._waiting_tokens = 0
        self._rate = 0.0  # tokens per second
        self._batch_s = math.inf  # of the last batch
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="extraction", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Return the number of texts that wait for a batch."""
        return self._waiting

    @property
    def alive(self) -> bool:
        """Return whether the thread works, or has yet to start."""
        return self._loop is None or self._thread.is_alive()

    async def extract(self, model: LoadedModel, texts: list[str]) -> list[list[Keyphrase]]:
        """Return the keyphrases of each text. If the caller is canceled, texts that are in no batch yet never will be.

        Raises:
            QueueFullError: there is no room for the texts, or those that wait have waited for too long.
        """
        if not texts:
            return []
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        job = _Job(model, texts, self._loop.create_future())
        tokens = sum(map(estimate_tokens, texts))
        with self._changed:
            waited = job.came - self._jobs[0].came if self._jobs else 0.0
            wait = self._waiting_tokens / self._rate if self._rate else 0.0
            if self._waiting + len(texts) > self._max_queue or max(waited, wait) > self._max_wait_s:
                raise QueueFullError(wait)
            self._jobs.append(job)
            self._waiting += len(texts)
            self._waiting_tokens += tokens
            # An idle thread is woken by the first job, and again when a batch is full.
            if len(self._jobs) == 1 or self._waiting_tokens >= self._batch_tokens:
                self._changed.notify()
        try:
            return await job.done
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    def close(self) -> None:
        """End the thread after its batch. Jobs that wait are canceled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while (parts := self._next_batch()) is not None:
            if parts:
                self._run(parts)
            del parts  # its jobs would keep their model, and its process, for as long as no batch follows

    def _next_batch(self) -> list[_Part] | None:
        """Wait for texts and return a batch; None when the batcher is closed."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            until = time.monotonic() + min(self._wait_s, _WAIT_SHARE * self._batch_s)
            while self._waiting_tokens < self._batch_tokens and not self._closed:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            return None if self._closed else self._take()

    def _take(self) -> list[_Part]:
        """Take a batch from the front of the queue: texts of one extractor, and of no request that nobody waits for."""
        parts: list[_Part] = []
        room = self._batch_tokens
        while self._jobs and room > 0:
            job = self._jobs[0]
            if job.done.done():  # its deadline has passed, or its client has gone
                self._forget(job.texts[job.taken :])
                self._jobs.popleft()
                continue
            if parts and job.model is not parts[0][0].model:
                break
            start = job.taken
            while job.taken < len(job.texts):
                tokens = estimate_tokens(job.texts[job.taken])
                if tokens > room and (parts or job.taken > start):
                    room = 0
                    break
                room -= tokens
                job.taken += 1
            if job.taken > start:
                parts.append((job, start, job.taken))
                self._forget(job.texts[start : job.taken])
            if job.taken == len(job.texts):
                self._jobs.popleft()
        return parts

    def _withdraw(self, job: _Job) -> None:
        """Free the room of a request that nobody waits for at once: the batch that runs, or those before it, may take long."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._forget(job.texts[job.taken :])

    def _forget(self, texts: list[str]) -> None:
        self._waiting -= len(texts)
        self._waiting_tokens -= sum(map(estimate_tokens, texts))

    def _run(self, parts: list[_Part]) -> None:
        """Extract a batch and answer its jobs. If that fails, each job is tried alone: one may not fail another."""
        texts = [text for job, start, end in parts for text in job.texts[start:end]]
        began = time.monotonic()
        results: list[list[list[Keyphrase]] | Exception] = []
        try:
            found = iter(parts[0][0].model.extract(texts, self._overloaded()))
            results += [[next(found) for _ in range(start, end)] for _, start, end in parts]
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    self._run([part])
                return
            results.append(error)
        self._batch_s = seconds = time.monotonic() - began
        tokens = sum(map(estimate_tokens, texts))
        if tokens >= _RATE_TOKENS:
            rate = tokens / max(seconds, 1e-6)
            self._rate = _RATE_MEMORY * self._rate + (1 - _RATE_MEMORY) * rate if self._rate else rate
        self._on_batch(BatchStats(len(texts), tokens, len(parts), seconds))
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_deliver, parts, results)
        except RuntimeError:
            if not self._loop.is_closed():  # else the server has ended, and nobody waits for the batch
                raise


def _deliver(parts: list[_Part], results: list[list[list[Keyphrase]] | Exception]) -> None:
    """Add the results of a batch to its jobs, in the event loop; a job whose last text is done is answered."""
    for (job, *_), result in zip(parts, results, strict=True):
        if job.done.done():
            continue
        if isinstance(result, Exception):
            job.done.set_exception(result)
            continue
        job.found += result
        if len(job.found) == len(job.texts):
            job.done.set_result(job.found)
