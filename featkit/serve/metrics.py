"""Prometheus counters at /metrics. Only the service has them, so the search page does not need
prometheus-client."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import FastAPI, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit.serve.admission import Admission


class _Admitted(Collector):
    """The requests that admission control has let in and refused."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Yield the present values."""
        admission = self._admission
        yield GaugeMetricFamily(
            "featkit_requests_in_flight",
            "Requests with a body that are accepted and not answered.",
            admission.num_requests,
        )
        yield GaugeMetricFamily(
            "featkit_body_bytes_in_flight", "Bytes of their bodies.", admission.num_bytes
        )
        ended = CounterMetricFamily(
            "featkit_requests_ended_early",
            "Requests refused for too many requests or bytes in flight, and left by their clients.",
            labels=["reason"],
        )
        for reason in ("requests", "bytes", "left"):
            ended.add_metric([reason], admission.counts[reason])
        yield ended


class CountedRequests:
    """ASGI middleware that counts requests by route and status, and measures their duration.

    A request that ends in an exception counts as 500. `receive` is passed on unchanged, so that a
    route notices when its client disconnects; Starlette's BaseHTTPMiddleware hides that.
    """

    def __init__(self, app: ASGIApp, requests: Counter, seconds: Histogram) -> None:
        self.app, self.requests, self.seconds = app, requests, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # The route's pattern, not the path: one series per route, however many items and
            # nonexistent paths are requested.
            route = getattr(scope.get("route"), "path", "unknown")
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - started)


def add_metrics(app: FastAPI, admission: Admission | None = None) -> None:
    """Count the app's requests, and serve the counters at /metrics.

    admission: what lets its requests in, whose state is shown as well.
    """
    registry = CollectorRegistry()  # of its own, since a process may have several apps
    if admission is not None:
        registry.register(_Admitted(admission))
    requests = Counter(
        "featkit_requests", "Requests answered.", ["route", "status"], registry=registry
    )
    seconds = Histogram(
        "featkit_request_seconds", "Seconds to answer a request.", ["route"], registry=registry
    )
    app.add_middleware(CountedRequests, requests=requests, seconds=seconds)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
