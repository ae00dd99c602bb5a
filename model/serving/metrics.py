"""What a server counts, in the format of Prometheus. Labels are routes and statuses; nothing of a request's content."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from model.serving.batcher import BatchStats

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = tuple(2**n for n in range(13))


class ServerMetrics:
    """The counters of one server, in a registry of their own, so that a process may have several servers."""

    def __init__(self, extraction_pid: Callable[[], int | None]) -> None:
        """
        Args:
            extraction_pid: id of the process of the bundle, if there is one.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        ProcessCollector("tandem_extraction", lambda: extraction_pid() or "none", registry=self._registry)
        GCCollector(registry=self._registry)
        here = self._registry
        self._requests = Counter("tandem_requests", "Requests by route and status", ("route", "status"), registry=here)
        self._seconds = Histogram(
            "tandem_request_seconds", "Time to answer", ("route",), buckets=_SECONDS, registry=here
        )
        self._texts = Counter("tandem_texts", "Texts that were extracted", registry=here)
        self._tokens = Counter("tandem_tokens", "Tokens that were extracted, estimated", registry=here)
        self._batch_texts = Histogram("tandem_batch_texts", "Texts of a batch", buckets=_SIZES, registry=here)
        self._batch_requests = Histogram("tandem_batch_requests", "Requests of a batch", buckets=_SIZES, registry=here)
        self._batch_seconds = Histogram("tandem_batch_seconds", "Time of a batch", buckets=_SECONDS, registry=here)
        self.queue = Gauge("tandem_queue_texts", "Texts that wait for a batch", registry=here)
        self.in_flight = Gauge("tandem_requests_in_flight", "Requests that are worked on", registry=here)
        self.reloads = Counter("tandem_reloads", "Reloads of the bundle by outcome", ("outcome",), registry=here)
        self._by_route: dict[str, Histogram] = {}
        self._by_status: dict[tuple[str, int], Counter] = {}

    def on_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        counter = self._by_status.get((route, status))
        if counter is None:
            counter = self._by_status[route, status] = self._requests.labels(route, str(status))
        histogram = self._by_route.get(route)
        if histogram is None:
            histogram = self._by_route[route] = self._seconds.labels(route)
        counter.inc()
        histogram.observe(seconds)

    def on_batch(self, batch: BatchStats) -> None:
        """Count a batch."""
        self._texts.inc(batch.texts)
        self._tokens.inc(batch.tokens)
        self._batch_texts.observe(batch.texts)
        self._batch_requests.observe(batch.requests)
        self._batch_seconds.observe(batch.seconds)

    def render(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self._registry)
