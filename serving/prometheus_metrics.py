"""What Prometheus may know: requests, how long they took, batches, the model, and what was dropped."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.monitoring.heartbeat import heartbeat_age_s
from serving.holder import ModelHolder

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server."""

    def __init__(self, holder: ModelHolder) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "cracks_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "cracks_request_seconds",
            "From a request to its answer",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "cracks_images", "Images scored, by what they read as", ["label"], registry=self._registry
        )
        self.batch = Histogram(
            "cracks_batch_images", "Images that went through the network together", buckets=BATCH_IMAGES,
            registry=self._registry,
        )  # fmt: skip
        self.dropped = Counter(
            "cracks_log_dropped_images",
            "Images that the prediction log had no time or no room for",
            registry=self._registry,
        )
        self._registry.register(_ModelCollector(holder))

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelCollector:
    """Reads the state of the model when it is asked for."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        held = self._holder.current
        model = GaugeMetricFamily("cracks_model", "The model that answers", labels=["name", "version"])
        if held is not None:
            model.add_metric([held.version.name, held.version.number], 1)
        yield model
        yield GaugeMetricFamily("cracks_registry_away", "1 while the registry is away", self._holder.is_registry_away)
        yield CounterMetricFamily("cracks_model_swaps", "Models put in place", self._holder.n_swaps)
        yield CounterMetricFamily("cracks_model_refusals", "Broken models refused", self._holder.n_refusals)
        age_s = heartbeat_age_s()
        if age_s is not None:
            help_text = "Since the last sign of life of the schedules on this machine"
            yield GaugeMetricFamily("cracks_schedules_heartbeat_age_seconds", help_text, age_s)


class Measured:
    """Counts every request and its seconds under its route; what has no route is counted together."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started_s)
