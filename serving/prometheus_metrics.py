"""Prometheus metrics: requests, their durations, batches, the model, dropped rows of the prediction log."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.monitoring.heartbeat import heartbeat_age_s
from serving.current_model import ModelHolder

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server."""

    def __init__(self, holder: ModelHolder) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "cracks_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "cracks_request_seconds",
            "Seconds from a request to its answer",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.images = Counter("cracks_images", "Images scored, by label", ["label"], registry=self._registry)
        self.batch = Histogram(
            "cracks_batch_images", "Images per batch", buckets=BATCH_IMAGES,
            registry=self._registry,
        )  # fmt: skip
        self.dropped = Counter(
            "cracks_log_dropped_images",
            "Images that could not be logged or stored for lack of time or space",
            registry=self._registry,
        )
        self.slow_decoders = Counter(
            "cracks_slow_decoders", "Images that took more than a second to decode", registry=self._registry
        )
        self._registry.register(_ModelCollector(holder))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelCollector:
    """Reads the state of the model at each scrape."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        model = GaugeMetricFamily("cracks_model", "The current model", labels=["name", "version"])
        if (loaded := self._holder.current) is not None:
            model.add_metric([loaded.version.name, loaded.version.number], 1)
        yield model
        yield GaugeMetricFamily(
            "cracks_registry_away", "1 while the registry is unavailable", self._holder.is_registry_unavailable
        )
        yield CounterMetricFamily("cracks_model_swaps", "Models swapped in", self._holder.n_swaps)
        yield CounterMetricFamily("cracks_model_refusals", "Broken models refused", self._holder.n_refusals)
        if (age_s := heartbeat_age_s()) is not None:
            help_text = "Seconds since the last heartbeat of the schedules on this machine"
            yield GaugeMetricFamily("cracks_schedules_heartbeat_age_seconds", help_text, age_s)


class RequestMetrics:
    """Counts and times every request by route; requests without a route are counted as `other`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle and count a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started_s)
