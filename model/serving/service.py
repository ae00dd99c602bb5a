"""What stands behind the HTTP interface: the loaded bundle, its replacement, the tokens and the batches."""

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any

from model.errors import UserError
from model.inference.bundle import load_bundle, read_card
from model.inference.extractor import Extractor, Keyphrase
from model.serving.batcher import Batcher, QueueFullError
from model.serving.contract import ProblemError
from model.serving.metrics import ServerMetrics
from model.serving.settings import ServeSettings
from model.serving.tokens import Tokens

_log = logging.getLogger("tandem.serve")
_WARM_UP = ("what a match by Roger Federer tonight", "storm ada closes schools in leeds https://t.co/x @ann 😀")
_WARM_UP_SIZES = (1, 8, 64)  # texts of a batch


@dataclass(frozen=True)
class LoadedModel:
    """A bundle that is ready to use.

    Attributes:
        extractor: warmed up.
        card: its model card.
        metrics: on the validation split.
        weights_sha256: digest of its weights.
    """

    extractor: Extractor
    card: str
    metrics: dict[str, Any]
    weights_sha256: str


def load_model(location: str, device: str) -> LoadedModel:
    """Load a bundle and extract a few texts with it. Raises UserError where it cannot be used."""
    bundle = load_bundle(location)
    extractor = Extractor(bundle.tagger, bundle.tokenizer, device, bundle.subwords)
    for size in _WARM_UP_SIZES:
        list(extractor.pipe([_WARM_UP[i % len(_WARM_UP)] for i in range(size)]))
    return LoadedModel(extractor, read_card(location), bundle.metrics, bundle.weights_sha256)


class Service:
    """A server without HTTP.

    Attributes:
        settings: what it was told.
        metrics: what it counts.
        tokens: who may use it; None lets everybody in.
        model: the bundle in use; None until `load`.
        draining: whether it takes no new request.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Read the tokens. Raises UserError where there are none."""
        self.settings, self.metrics = settings, ServerMetrics()
        self.tokens = None if settings.token_file is None else Tokens(settings.token_file)
        self.model: LoadedModel | None = None
        self.draining = False
        self._batcher = Batcher(
            settings.batch_tokens,
            settings.batch_wait / 1000,
            settings.max_queue,
            settings.max_wait,
            self.metrics.on_batch,
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
        return self._batcher.alive

    def load(self) -> None:
        """Load the bundle. Raises UserError where it cannot be used."""
        self.model = load_model(self.settings.bundle, self.settings.device)

    async def extract(self, texts: list[str]) -> list[list[Keyphrase]]:
        """Return the keyphrases of each text. Raises ProblemError where they cannot be extracted now."""
        if self.model is None or self.draining:
            raise ProblemError(
                503, "the server is stopping or not ready; try another one", headers={"Retry-After": "1"}
            )
        try:
            return await self._batcher.extract(self.model.extractor, texts)
        except QueueFullError as full:
            seconds = max(1, math.ceil(full.retry_s))
            raise ProblemError(
                429, f"the queue is full; try again in {seconds} s", headers={"Retry-After": str(seconds)}
            ) from None

    async def reload(self) -> LoadedModel:
        """Read tokens and bundle again. Requests that have begun end with the old bundle.

        Raises:
            UserError: one of them cannot be used; it is then as before.
        """
        async with self._reloading:
            try:
                if self.tokens is not None:
                    self.tokens.reread()
                self.model = await asyncio.to_thread(load_model, self.settings.bundle, self.settings.device)
            except (UserError, OSError) as error:
                self.metrics.reloads.labels("refused").inc()
                _log.error("the bundle or the tokens were not taken in, the old ones stay: %s", error)
                raise error if isinstance(error, UserError) else UserError(str(error)) from error
            self.metrics.reloads.labels("done").inc()
            _log.info("the bundle was taken in again: weights %s", self.model.weights_sha256[:12])
            return self.model

    async def close(self) -> None:
        """End the thread of the batches."""
        await asyncio.to_thread(self._batcher.close)
