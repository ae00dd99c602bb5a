"""What stands behind the HTTP interface: the loaded bundle, its replacement, the tokens and the batches."""

import asyncio
import logging
import math
import time

from model.errors import RunFailedError, UserError
from model.inference.keyphrase import Keyphrase
from model.serving.batcher import Batcher, QueueFullError
from model.serving.contract import ProblemError
from model.serving.extraction import LoadedModel
from model.serving.metrics import ServerMetrics
from model.serving.settings import ServeSettings
from model.serving.tokens import Tokens

_OVERLOAD_S = 1.0  # after a refused request
_log = logging.getLogger("tandem.serve")


class Service:
    """A server without HTTP.

    Attributes:
        settings: what it was told.
        metrics: what it counts.
        tokens: who may use it; None lets everybody in.
        model: the bundle in use; None until `load`.
        draining: whether it takes no new request.
        refused_at: when a request was last answered with 429, by the monotonic clock.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Read the tokens. Raises UserError where there are none."""
        self.settings = settings
        self.metrics = ServerMetrics(lambda: self.model.pid if self.model else None)
        self.tokens = self._read_tokens()
        self.model: LoadedModel | None = None
        self.draining = False
        self.refused_at = -math.inf
        self._batcher = Batcher(
            settings.batch_tokens,
            settings.batch_wait / 1000,
            settings.max_queue,
            settings.max_wait,
            self.metrics.on_batch,
            lambda: time.monotonic() - self.refused_at < _OVERLOAD_S,
        )
        self.metrics.queue.set_function(lambda: self._batcher.waiting)
        self._reloading = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Return whether requests are answered."""
        return self.model is not None and not self.draining and self.alive

    @property
    def alive(self) -> bool:
        """Return whether this process can still extract; if not, it has to be replaced."""
        return self._batcher.alive and (self.model is None or self.model.alive)

    def load(self) -> None:
        """Load the bundle. Raises the errors of `LoadedModel`."""
        self.model = LoadedModel(self.settings.bundle, self.settings.device)

    def _read_tokens(self) -> Tokens | None:
        return None if self.settings.token_file is None else Tokens(self.settings.token_file)

    async def extract(self, texts: list[str]) -> list[list[Keyphrase]]:
        """Return the keyphrases of each text. Raises ProblemError where they cannot be extracted now."""
        if self.model is None or self.draining:
            raise ProblemError(
                503, "the server is stopping or not ready; try another one", headers={"Retry-After": "1"}
            )
        try:
            return await self._batcher.extract(self.model, texts)
        except QueueFullError as full:
            seconds = max(1, math.ceil(full.retry_s))
            raise ProblemError(
                429, f"the queue is full; try again in {seconds} s", headers={"Retry-After": str(seconds)}
            ) from None

    async def reload(self) -> LoadedModel:
        """Read tokens and bundle again. Requests that have begun end with the old bundle.

        Raises:
            UserError: one of them cannot be used; both are then as before.
        """
        async with self._reloading:
            try:
                tokens = self._read_tokens()
                self.model = await asyncio.to_thread(LoadedModel, self.settings.bundle, self.settings.device)
            except (UserError, RunFailedError, OSError) as error:
                self.metrics.reloads.labels("refused").inc()
                _log.error("the bundle or the tokens were not taken in, the old ones stay: %s", error)
                raise error if isinstance(error, UserError) else UserError(str(error)) from error
            self.tokens = tokens
            self.metrics.reloads.labels("done").inc()
            _log.info("the bundle was taken in again: weights %s", self.model.info.weights_sha256[:12])
            return self.model

    async def close(self) -> None:
        """End the thread of the batches."""
        await asyncio.to_thread(self._batcher.close)
