"""What Prometheus reads. One registry for each app, so that two apps in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

LATENCY_S = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """The gateway's metrics. Routes are labelled by their pattern, never by a caller's path."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "igen_gateway_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "igen_gateway_request_seconds",
            "Seconds from a request to its answer.",
            ["route"],
            buckets=LATENCY_S,
            registry=self.registry,
        )
        self.generations = Counter(
            "igen_gateway_generations", "Generations that ended here.", ["outcome"], registry=self.registry
        )
        self.replays = Counter(
            "igen_gateway_replays", "Requests that joined or replayed another by its key.", registry=self.registry
        )
        self.waiting = Gauge("igen_gateway_waiting", "Callers that wait for pictures.", registry=self.registry)
        self.carried = Gauge("igen_gateway_carried", "Rows that this process carries.", registry=self.registry)
        self.breaker_open = Gauge(
            "igen_gateway_breaker_open", "1 while the backend is taken for dead.", registry=self.registry
        )
        self.log_waiting = Gauge(
            "igen_gateway_log_waiting", "Log rows not yet in the database.", registry=self.registry
        )
        self.log_lost = Counter(
            "igen_gateway_log_lost", "Log rows that could not be kept; the log has them.", registry=self.registry
        )

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
