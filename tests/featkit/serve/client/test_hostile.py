"""Whatever an address answers, a call returns or raises an error of featkit."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit import Client
from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.serve.client import paging
from tests.featkit.serve.client.scripts import FakeClock, Script

NO_HEADERS: Mapping[str, str] = {}
ITEM = {"id": 1, "key": "a", "width": 1, "height": 1, "metadata": {"x": 1}, "thumbnail": "/t"}
IMAGE = {"name": "a", "height": 1, "width": 1}
CALLS: dict[str, tuple[Callable[[Client], object], dict[str, Any]]] = {
    "health": (
        lambda client: client.health(),
        {"status": "ok", "model": "m", "fingerprint": "f", "backend": "b", "num_items": 3},
    ),
    "embed": (
        lambda client: client.embed([b"x"]),
        {"model": "m", "fingerprint": "f", "width": 1, "images": [{**IMAGE, "vector": [1.0]}]},
    ),
    "search": (
        lambda client: client.search([b"x"], k=1),
        {"fingerprint": "f", "images": [{**IMAGE, "hits": [{**ITEM, "score": 0.5}]}]},
    ),
    "neighbors": (
        lambda client: client.neighbors(3, k=1),
        {"item": ITEM, "hits": [{**ITEM, "score": 0.5}]},
    ),
    "items": (lambda client: client.items(), {"total": 1, "items": [ITEM]}),
    "iter_items": (lambda client: [*client.iter_items()], {"total": 1, "items": [ITEM]}),
    "thumbnail": (lambda client: client.thumbnail(3), {}),
}
HEADER_NAMES = st.sampled_from(
    [
        *("content-type", "content-encoding", "location", "retry-after", "set-cookie"),
        *("content-length", "transfer-encoding", "x-featkit-fingerprint"),
    ]
)
HEADERS = st.dictionaries(
    HEADER_NAMES,
    st.sampled_from(
        ["application/json", "application/octet-stream", "gzip", "br", "http://[::1", "//", "7"]
    )
    | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    max_size=3,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


answers: list[Callable[[], httpx.Response]] = []  # the last one is given to every request
# One client for all examples, since each reads the system's certificates.
CLIENT = Client(
    "http://photos.example",
    transport=httpx.MockTransport(lambda _: answers[-1]()),
    max_attempts=2,
    clock=FakeClock(),
)


def answering(status: int, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Client:
    """Return a client whose address gives this answer."""

    def respond() -> httpx.Response:
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        # a stream, so that the client decodes the body, as it would from a connection
        return httpx.Response(status, headers=encoded, stream=httpx.ByteStream(content))

    answers[:] = [respond]
    return CLIENT


@pytest.mark.parametrize("call", CALLS)
@given(st.integers(200, 599), HEADERS, st.binary(max_size=50) | JSON.map(json.dumps))
def test_no_answer_breaks_a_client(
    call: str, status: int, headers: dict[str, str], body: bytes | str
) -> None:
    content = body.encode() if isinstance(body, str) else body
    with contextlib.suppress(EnvironmentProblem, InputError):
        CALLS[call][0](answering(status, content, headers))


@pytest.mark.parametrize("call", CALLS)
@given(st.data())
def test_no_changed_answer_breaks_a_client(call: str, data: st.DataObject) -> None:
    ask, answer = CALLS[call]
    changed = _changed(answer, data)
    body = json.dumps(changed)
    body = body[: data.draw(st.integers(0, len(body))) if data.draw(st.booleans()) else None]
    with contextlib.suppress(FeatkitError):
        ask(answering(200, body.encode()))


def _changed(value: Any, data: st.DataObject) -> Any:
    """Return a JSON value with one part of it replaced, removed or repeated."""
    if isinstance(value, dict) and value and data.draw(st.booleans(), "go into an object"):
        name = data.draw(st.sampled_from([*value]))
        if data.draw(st.booleans(), "remove"):
            return {each: value[each] for each in value if each != name}
        return {**value, name: _changed(value[name], data)}
    if isinstance(value, list) and value and data.draw(st.booleans(), "go into a list"):
        return [_changed(value[0], data), *value[data.draw(st.integers(0, 2)) :]]
    return data.draw(JSON)


def test_unchanged_answers_are_accepted() -> None:
    for name, (ask, answer) in CALLS.items():
        if name != "thumbnail":
            ask(answering(200, json.dumps(answer).encode()))


def test_a_compressed_answer_is_bounded_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featkit.serve.client.answers.MAX_ANSWER_BYTES", 10**6)
    bomb = gzip.compress(bytes(10**8))
    client = answering(200, bomb, {"content-encoding": "gzip"})
    with pytest.raises(EnvironmentProblem, match="more than 1,000,000 bytes"):
        client.health()


def test_pages_of_a_hostile_service_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_SIZE", 2)
    script = Script(
        *[
            httpx.Response(200, json={"total": 9, "items": [{**ITEM, "id": i} for i in ids]})
            for ids in ([1, 2], [5, 6], [1, 2], [0, 1], [0, 2], [3, 4], [])
        ]
    )
    with contextlib.suppress(EnvironmentProblem):
        [*script.client().iter_items()]
    assert len(script.requests) < 20
