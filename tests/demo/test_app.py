"""The app blocks the routes of Gradio that the page does not need."""

from __future__ import annotations

import httpx
import pytest


@pytest.mark.parametrize("route", ["upload", "upload/", "vibe-edit", "queue/join", "run/predict"])
def test_gradio_routes_accept_no_upload(page_address: str, route: str) -> None:
    answer = httpx.post(
        f"{page_address}/gradio_api/{route}", files=[("files", ("a.txt", b"kept by nobody"))]
    )
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "route",
    ["file=page.css", "file/page.css", "upload_progress?upload_id=1", "proxy=http://127.0.0.1/"],
)
def test_gradio_routes_return_nothing(page_address: str, route: str) -> None:
    assert httpx.get(f"{page_address}/gradio_api/{route}").status_code == 404
    assert httpx.get(f"{page_address}/%67radio_api/{route}").status_code == 404


def test_blocked_routes_answer_with_the_content_policy(page_address: str) -> None:
    assert (
        "default-src"
        in httpx.get(f"{page_address}/gradio_api/upload").headers["content-security-policy"]
    )
