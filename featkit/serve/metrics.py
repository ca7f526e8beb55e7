"""Counters for Prometheus at /metrics, for the service only; the page has no need of
prometheus-client."""

from __future__ import annotations

import time

from fastapi import FastAPI, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CountedRequests:
    """ASGI middleware: counts requests by route and status and their seconds, those that end in an
    exception as 500.

    It passes `receive` on as it is, so that a route hears when its client has gone; Starlette's
    BaseHTTPMiddleware does not.
    """

    def __init__(self, app: ASGIApp, requests: Counter, seconds: Histogram) -> None:
        self.app, self.requests, self.seconds = app, requests, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            # The route's pattern, not the path: one series a route, however many items and nonsense
            # paths are asked for.
            route = getattr(scope.get("route"), "path", "unknown")
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - started)


def add_metrics(app: FastAPI) -> None:
    """Count requests by route and status and their seconds, in a registry of this app's own, and
    serve them."""
    registry = CollectorRegistry()
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
