"""Requests are accepted within bounds, end in time, and end when their clients leave."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve import patience
from featkit.serve.admission import Admission, Bounds
from featkit.serve.app import make_app
from featkit.serve.refusals import ClientLeft, Overloaded, TooLate
from tests.featkit.serve.conftest import LIMITS, files, png
from tests.serving import serving

TIGHT = Bounds(requests=2, body_bytes=120_000)
BOUNDARY = "b0undary"


@pytest.fixture
def tight_address(index: Index, embedder: Embedder) -> Iterator[str]:
    """The service with tight bounds on a real port."""
    limits = dataclasses.replace(LIMITS, bounds=TIGHT)
    with serving(make_app(index, embedder, limits=limits)) as address:
        yield address


def connected(address: str) -> socket.socket:
    parts = urlsplit(address)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=10)


def body_of(*seeds: int) -> bytes:
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="files"; filename="%d.png"\r\n\r\n%s\r\n'
        % (BOUNDARY.encode(), seed, png(seed))
        for seed in seeds
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def head_of(num_bytes: int, *lines: str) -> bytes:
    shown = "".join(f"{line}\r\n" for line in lines)
    return (
        "POST /v1/embed HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {num_bytes}\r\n{shown}\r\n"
    ).encode()


def answer_from(opened: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the status, headers and JSON of the next answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = opened.recv(65536)
        assert piece, "closed without an answer"
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += opened.recv(65536)
    return int(first.split()[1]), headers, json.loads(body)


def is_closed(opened: socket.socket) -> bool:
    """Wait for the other side to close the connection."""
    try:
        return opened.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bounds_hold_for_many_threads() -> None:
    admission = Admission(Bounds(requests=5, body_bytes=40))
    most_requests = most_bytes = 0
    start = threading.Barrier(8)

    def work(_: int) -> None:
        nonlocal most_requests, most_bytes
        start.wait()
        for number in range(200):
            try:
                accepted = admission.accept(number % 20, deadline_s=1.0)
            except Overloaded:
                continue
            most_requests = max(most_requests, admission.num_requests)
            most_bytes = max(most_bytes, admission.num_bytes)
            accepted.end()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert most_requests <= 5
    assert most_bytes <= 40
    assert (admission.num_requests, admission.num_bytes) == (0, 0)


def test_a_body_beyond_the_bytes_in_flight_is_refused() -> None:
    admission = Admission(Bounds(body_bytes=100))
    first = admission.accept(60, deadline_s=1.0)
    with pytest.raises(Overloaded):
        admission.accept(41, deadline_s=1.0)
    second = admission.accept(0, deadline_s=1.0)
    second.grow_to(40)
    with pytest.raises(Overloaded):
        second.grow_to(41)
    first.end()
    second.grow_to(100)
    second.end()
    assert (admission.num_requests, admission.num_bytes) == (0, 0)
    assert admission.counts["bytes"] == 2


def test_work_ends_past_the_deadline_and_without_a_client() -> None:
    admission = Admission(Bounds())
    late = admission.accept(0, deadline_s=0.0)
    with pytest.raises(TooLate, match="X-Request-Deadline-Ms"):
        late.check()
    left = admission.accept(0, deadline_s=60.0)
    left.check()
    left.leave()
    with pytest.raises(ClientLeft):
        left.check()
    assert left.cancel.is_set


def test_a_flood_is_refused_before_its_bodies_are_read(tight_address: str) -> None:
    with (
        closing(connected(tight_address)) as first,
        closing(connected(tight_address)) as second,
        closing(connected(tight_address)) as third,
    ):
        for opened in (first, second):
            opened.sendall(head_of(50_000))
        while metric(tight_address, "featkit_requests_in_flight") < 2:
            time.sleep(0.01)
        assert metric(tight_address, "featkit_body_bytes_in_flight") == 100_000
        third.sendall(head_of(50_000))  # and nothing of its body
        status, headers, answer = answer_from(third)
        assert (status, answer["images"]) == (503, [])
        assert int(headers["retry-after"]) >= 1
    while metric(tight_address, "featkit_requests_in_flight"):  # the two whose bodies never came
        time.sleep(0.01)
    assert httpx.post(f"{tight_address}/v1/embed", files=files(1)).status_code == 200
    refused = 'featkit_requests_ended_early_total{reason="requests"}'
    assert metric(tight_address, refused) == 1


def test_a_body_that_does_not_arrive_is_408(index: Index, embedder: Embedder) -> None:
    limits = dataclasses.replace(LIMITS, bounds=Bounds(body_s=0.3))
    with (
        serving(make_app(index, embedder, limits=limits)) as address,
        closing(connected(address)) as opened,
    ):
        opened.sendall(head_of(50_000) + body_of(1)[:100])
        assert answer_from(opened)[0] == 408
        assert is_closed(opened)


def metric(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def test_a_body_without_a_length_counts_as_it_arrives(tight_address: str) -> None:
    whole = body_of(1)
    image_begins = whole.index(b"\r\n\r\n") + 4

    def pieces() -> Iterator[bytes]:
        yield whole[:image_begins]
        for _ in range(30):
            yield bytes(5000)

    kind = f"multipart/form-data; boundary={BOUNDARY}"
    answer = httpx.post(
        f"{tight_address}/v1/embed", content=pieces(), headers={"Content-Type": kind}
    )
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    while metric(tight_address, "featkit_body_bytes_in_flight"):
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/embed HTT", head_of(10)[:-2]])
def test_a_connection_without_a_request_is_closed(
    live_address: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.3)
    with closing(connected(live_address)) as opened:
        opened.sendall(sent)
        if sent:
            assert answer_from(opened)[0] == 408
        assert is_closed(opened)


def test_the_rest_of_a_refused_body_is_not_waited_for(
    live_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.3)
    with closing(connected(live_address)) as opened:
        opened.sendall(head_of(10**9))
        assert answer_from(opened)[0] == 413
        assert is_closed(opened)


def test_a_connection_stays_open_after_a_refused_body(live_address: str) -> None:
    with closing(connected(live_address)) as opened:
        for _ in range(2):
            opened.sendall(head_of(200_000))
            opened.sendall(bytes(100_000))
            assert answer_from(opened)[0] == 413
            opened.sendall(bytes(100_000))
        body = body_of(3)
        opened.sendall(head_of(len(body)) + body)
        assert answer_from(opened)[0] == 200


def test_clients_that_left_are_not_served(
    live_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the images that were at work when their clients left are decoded."""
    decoded: list[object] = []
    may_go_on = threading.Event()
    decode = Embedder.decode

    def slow_decode(self: Embedder, image: Any, **options: Any) -> Any:
        decoded.append(image)
        may_go_on.wait(10)
        return decode(self, image, **options)

    monkeypatch.setattr(Embedder, "decode", slow_decode)
    body = body_of(1, 2, 3, 4)
    clients = [connected(live_address) for _ in range(12)]
    for opened in clients:
        opened.sendall(head_of(len(body)) + body)
    while metric(live_address, "featkit_requests_in_flight") < len(clients) or not decoded:
        time.sleep(0.01)
    for opened in clients:
        opened.close()
    left = 'featkit_requests_ended_early_total{reason="left"}'
    while metric(live_address, left) < len(clients):
        time.sleep(0.01)
    num_begun = len(decoded)
    may_go_on.set()
    assert httpx.post(f"{live_address}/v1/embed", files=files(5)).status_code == 200
    assert len(decoded) == num_begun + 1
    while metric(live_address, "featkit_requests_in_flight"):
        time.sleep(0.01)


def test_an_answer_past_its_deadline_is_504(
    live_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Embedder.decode

    def slow_decode(self: Embedder, image: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return decode(self, image, **options)

    monkeypatch.setattr(Embedder, "decode", slow_decode)
    answer = httpx.post(
        f"{live_address}/v1/embed",
        files=files(1, 2, 3),
        headers={"X-Request-Deadline-Ms": "20"},
    )
    assert answer.status_code == 504
    assert "deadline of 0.02 s" in answer.json()["detail"]


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "1e3", "9" * 30, "0" * 11 + "1" + "9" * 400, "1" * 5000, "ten", "１"]
)
def test_a_deadline_that_is_no_time_is_refused(live_address: str, text: str) -> None:
    answer = httpx.post(
        f"{live_address}/v1/embed",
        files=files(1),
        headers=[(b"X-Request-Deadline-Ms", text.encode())],
    )
    assert answer.status_code == 422
    assert "X-Request-Deadline-Ms" in answer.json()["detail"]
