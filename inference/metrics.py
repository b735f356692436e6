"""Prometheus figures of the generator, in a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from models.wire import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from inference.engine.types import EngineStats
    from inference.jobs import JobBook, JobRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What is counted while jobs run. Labels are a fixed few words, never a caller's text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accepted = Counter("igen_jobs_accepted", "Jobs accepted.", registry=self.registry)
        self.refused = Counter("igen_jobs_refused", "Jobs refused.", ["reason"], registry=self.registry)
        self.ended = Counter("igen_jobs_ended", "Jobs that ended, by state.", ["state"], registry=self.registry)
        self.pictures = Counter("igen_pictures", "Pictures finished.", registry=self.registry)
        self.batch = Histogram(
            "igen_picture_batch_size", "Batch a picture was drawn in.", buckets=BATCHES, registry=self.registry
        )
        self.queue_s = Histogram(
            "igen_job_queue_seconds", "Wait for a slot.", buckets=SECONDS, registry=self.registry
        )
        self.run_s = Histogram(
            "igen_job_run_seconds", "From first slot to the end.", buckets=SECONDS, registry=self.registry
        )
        self.webhooks = Counter("igen_webhooks", "Webhooks, by outcome.", ["outcome"], registry=self.registry)
        for state in JobState:
            if state.terminal:
                self.ended.labels(state.value)  # so that each shows 0 from the start

    def job_ended(self, record: JobRecord) -> None:
        """Count one finished job and its times."""
        self.ended.labels(record.state.value).inc()
        if record.started_at is None or record.ended_at is None:
            return
        self.queue_s.observe(record.started_at - record.created_at)
        self.run_s.observe(record.ended_at - record.started_at)

    def watch(self, book: JobBook, stats: Callable[[], EngineStats | None]) -> None:
        """Show the book's and the engine's state of the moment at every scrape; `stats` is None while loading."""
        self.registry.register(_Moment(book, stats))

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _Moment(Collector):
    """Gauges that are read when asked for."""

    def __init__(self, book: JobBook, stats: Callable[[], EngineStats | None]) -> None:
        self._book = book
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """One gauge family after another."""
        jobs = GaugeMetricFamily("igen_jobs", "Unfinished jobs by state.", labels=["state"])
        for state in (JobState.IN_QUEUE, JobState.IN_PROGRESS):
            jobs.add_metric([state.value], self._book.count(state))
        yield jobs
        yield GaugeMetricFamily("igen_jobs_remembered", "Jobs in the book.", value=len(self._book))
        yield GaugeMetricFamily("igen_result_bytes", "Memory of finished results.", value=self._book.bytes_held)
        stats = self._stats()
        yield GaugeMetricFamily("igen_engine_up", "1 when the engine is ready.", value=int(stats is not None))
        if stats is None:
            return
        yield GaugeMetricFamily("igen_queue_depth", "Pictures waiting for a slot.", value=stats.waiting)
        yield GaugeMetricFamily("igen_pictures_running", "Pictures with a slot.", value=stats.running)
        yield GaugeMetricFamily("igen_picture_slots", "Most pictures in one UNet call.", value=stats.capacity)
        yield GaugeMetricFamily("igen_step_seconds", "Recent mean of one UNet row.", value=stats.step_ms / 1000)
        yield GaugeMetricFamily("igen_batch_size", "Rows of the last UNet call.", value=stats.batch_rows)
        yield GaugeMetricFamily("igen_engine_healthy", "0: call after call fails.", value=int(stats.healthy))
