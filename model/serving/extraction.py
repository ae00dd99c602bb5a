"""A bundle in a process of its own.

Extraction is thousands of short calls of torch, each of which gives up the interpreter's lock and takes it again. In one process
with the event loop, requests delay it at each of them: a flood of refused requests took half of the server's capacity.
"""

import atexit
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

from model.errors import RunFailedError, StorageError, UserError
from model.inference.keyphrase import Keyphrase

if TYPE_CHECKING:
    from model.inference.extractor import Extractor

_WARM_UP = ("what a match by Roger Federer tonight", "storm ada closes schools in leeds https://t.co/x @ann 😀")
_WARM_UP_SIZES = (1, 8, 64)  # texts of a batch
# For fewer, without an encoder, further threads gain 5 % at best on idle cores. Beside requests, which need these cores, one
# thread answers sooner: at half of the highest load of single texts in 40 to 52 ms instead of 65 to 72, in the median.
_CHARACTERS_FOR_THREADS = 4_000
# These may be sent to all processes of a server at once, and it answers what it has accepted before it ends.
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ExtractionError(RunFailedError):
    """A batch could not be extracted, or the process has ended."""


@dataclass(frozen=True)
class ModelInfo:
    """What there is to know about a bundle.

    Attributes:
        card: its model card.
        metrics: on the validation split.
        weights_sha256: digest of its weights.
    """

    card: str
    metrics: dict[str, Any]
    weights_sha256: str


class LoadedModel:
    """A bundle that is ready to use, in a process that ends with this object or with this process.

    Attributes:
        info: about the bundle.
    """

    def __init__(self, location: str, device: str) -> None:
        """Start the process, and wait until the bundle is loaded and warm.

        Raises:
            UserError: the bundle cannot be used.
            RunFailedError: the process ended.
            OSError: the bundle cannot be read; StorageError where its storage does not answer.
        """
        self._ended = False
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, location, device), daemon=True)
        _start_without_signals(self._process)
        theirs.close()  # so that an end of the process is the end of the connection
        atexit.register(self._connection.close)  # before multiprocessing waits for the process
        self.info: ModelInfo = self._receive()

    @property
    def alive(self) -> bool:
        """Return whether the process lives. A killed one closes its connection some time before it counts as ended."""
        return not self._ended and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Return the process's id."""
        return self._process.pid

    def extract(self, texts: Sequence[str], leave_a_core: bool = False) -> list[list[Keyphrase]]:
        """Return the keyphrases of each text. For one thread at a time.

        Args:
            texts: of a batch.
            leave_a_core: to the event loop. A thread of torch that has to wait for a core keeps the others waiting: in a flood
                of refused requests, a thread for each of 2 cores extracted 250 texts/s, one thread 365. Else it makes 1.05
                to 1.25 times as many.

        Raises:
            ExtractionError: this batch could not be extracted, or the process has ended.
        """
        try:
            self._connection.send((texts, leave_a_core))
        except OSError:
            raise self._end() from None
        found: list[list[Keyphrase]] = self._receive()
        return found

    def _end(self) -> ExtractionError:
        self._ended = True
        return ExtractionError("the process that extracts has ended; is there enough memory?")

    def __del__(self) -> None:
        atexit.unregister(self._connection.close)
        self._connection.close()  # which the process takes as its end

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._end() from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _start_without_signals(process: SpawnProcess) -> None:
    """Start a process that a signal to all processes of a server does not end before it ignores them."""
    resource_tracker.ensure_running()  # its start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, location: str, device: str) -> None:
    """Answer batches until the server ends, which may be in the middle of loading or of a batch."""
    for each in _GROUP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        _answer_batches(connection, location, device)


def _answer_batches(connection: Connection, location: str, device: str) -> None:
    """Answer batches. Raises EOFError or ConnectionError when the other end of the connection is closed."""
    import torch

    try:
        extractor, info = _load(location, device)
    except (UserError, RunFailedError, OSError) as error:
        connection.send(_to_picklable(error))
        return
    connection.send(info)
    threads = torch.get_num_threads()
    while True:
        texts, leave_a_core = connection.recv()
        torch.set_num_threads(batch_threads(texts, threads, leave_a_core, extractor.tagger.config.encoder is not None))
        connection.send(_extract(extractor, texts))


def _to_picklable(error: Exception) -> Exception:
    """Return an error with the same message and exit code. A storage's client may have kinds of OSError that do not pickle."""
    if isinstance(error, StorageError) or not isinstance(error, OSError):
        return error
    return OSError(error.errno, error.strerror, error.filename) if error.errno else OSError(str(error))


def batch_threads(texts: Sequence[str], most: int, leave_a_core: bool, encoder: bool) -> int:
    """Return with how many threads to extract a batch.

    Args:
        texts: of the batch.
        most: what the process may use.
        leave_a_core: see `LoadedModel.extract`.
        encoder: whether the tagger has an encoder, whose matrices are large for a single text too.
    """
    if not encoder and sum(map(len, texts)) < _CHARACTERS_FOR_THREADS:
        return 1
    return max(1, most - leave_a_core)


def _load(location: str, device: str) -> tuple["Extractor", ModelInfo]:
    """Load a bundle and extract a few texts with it."""
    from model.inference.bundle import load_bundle, read_card
    from model.inference.extractor import Extractor

    bundle = load_bundle(location)
    extractor = Extractor(bundle.tagger, bundle.tokenizer, device, bundle.subwords)
    for size in _WARM_UP_SIZES:
        list(extractor.pipe([_WARM_UP[i % len(_WARM_UP)] for i in range(size)]))
    return extractor, ModelInfo(read_card(location), bundle.metrics, bundle.weights_sha256)


def _extract(extractor: "Extractor", texts: list[str]) -> list[list[Keyphrase]] | ExtractionError:
    try:
        return list(extractor.pipe(texts, len(texts)))
    except Exception as error:  # its message may hold a part of a text
        frames = "".join(traceback.format_tb(error.__traceback__))
        print(f"a batch failed with {type(error).__name__}\n{frames}", file=sys.stderr, flush=True)
        return ExtractionError("a batch failed; the log has the place")
