"""Counters for Prometheus at /metrics, for the service only; the page has no need of prometheus-client."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest


def add_metrics(app: FastAPI) -> None:
    """Count requests by route and status and their seconds, in a registry of this app's own, and serve them."""
    registry = CollectorRegistry()
    requests = Counter("featkit_requests", "Requests answered.", ["route", "status"], registry=registry)
    seconds = Histogram("featkit_request_seconds", "Seconds to answer a request.", ["route"], registry=registry)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        # The route's pattern, not the path: one series a route, however many items and nonsense paths are asked for.
        route = getattr(request.scope.get("route"), "path", "unknown")
        requests.labels(route, str(response.status_code)).inc()
        seconds.labels(route).observe(time.perf_counter() - started)
        return response

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
