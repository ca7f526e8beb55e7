"""No request passes without a key that allows it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.guard import PROBES, KeyGuard, credentials, scope_for
from featkit.serve.keyring import Keyring
from featkit.serve.keys import create_key, revoke_key
from tests.featkit.serve.conftest import LIMITS, files
from tests.featkit.serve.guarded import bearer, echo_app
from tests.serving import serving


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    create_key(path, "other")
    return path


@pytest.fixture
def guarded(index: Index, embedder: Embedder, file: Path) -> Iterator[TestClient]:
    """The service with keys."""
    app = make_app(index, embedder, limits=LIMITS, keyring=Keyring(file))
    with TestClient(app) as client:
        yield client


def test_every_route_but_the_probes_needs_a_key(guarded: TestClient) -> None:
    spec = guarded.app.openapi()  # type: ignore[attr-defined]
    routes = [(method, path) for path, methods in spec["paths"].items() for method in methods]
    routes += [("get", "/metrics"), ("get", "/openapi.json"), ("get", "/nowhere"), ("put", "/")]
    assert len(routes) > 10
    for method, path in routes:
        answer = guarded.request(method, path.replace("{id}", "1"))
        if path in PROBES:
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="featkit"'
        assert "Authorization: Bearer KEY" in answer.text
    assert guarded.post("/healthz").status_code == 401


def test_a_key_reads_by_either_header(guarded: TestClient, file: Path) -> None:
    token = create_key(file, "web")
    for headers in (
        bearer(token),
        {"Authorization": f"bEaReR   {token} "},
        {"X-Api-Key": token},
        {"X-Api-Key": token, **bearer(token)},
        {"X-Api-Key": token, "Authorization": "Basic dXNlcjpwYXNz"},  # a proxy's login
    ):
        assert guarded.get("/v1/items", headers=headers).status_code == 200
        assert guarded.post("/v1/embed", files=files(1), headers=headers).status_code == 200
        assert guarded.post("/v1/search", files=files(1), headers=headers).status_code == 200
        assert guarded.get("/metrics", headers=headers).status_code == 200
        assert guarded.get("/nowhere", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "text",
    ["", "x", "featkit_", "featkit_00000000_" + "0" * 64, "é" * 50, "a" * 60_000, "\x00", "Bearer"],
    ids=lambda text: text[:12],
)
def test_another_text_is_no_key(guarded: TestClient, text: str) -> None:
    for header, value in (("Authorization", f"Bearer {text}"), ("X-Api-Key", text)):
        answer = guarded.get("/v1/items", headers=[(header.encode(), value.encode("latin-1"))])
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="featkit", error="invalid_token"'
        assert not text or text not in answer.json()["detail"].replace("Bearer", "", 1)


def test_several_different_keys_are_refused(guarded: TestClient, file: Path) -> None:
    one, two = create_key(file, "one"), create_key(file, "two")
    for pairs in (
        [("Authorization", f"Bearer {one}"), ("Authorization", f"Bearer {two}")],
        [("X-Api-Key", one), ("X-Api-Key", two)],
        [("Authorization", f"Bearer {one}"), ("X-Api-Key", two)],
        [("X-Api-Key", one), ("X-Api-Key", "")],
    ):
        answer = guarded.get("/v1/items", headers=pairs)
        assert (answer.status_code, answer.json()["detail"]) == (
            401,
            "The request has several keys; send one.",
        )


def test_revoked_and_expired_keys_stop_at_once(
    guarded: TestClient, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    revoked, expiring = create_key(file, "a"), create_key(file, "b", expires=expires)
    assert [
        guarded.get("/v1/items", headers=bearer(t)).status_code for t in (revoked, expiring)
    ] == [
        200,
        200,
    ]
    revoke_key(file, "a")
    answer = guarded.get("/v1/items", headers=bearer(revoked))
    assert (answer.status_code, "revoked" in answer.json()["detail"]) == (401, True)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return expires.astimezone(tz)

    monkeypatch.setattr("featkit.serve.guard.datetime", Later)
    answer = guarded.get("/v1/items", headers=bearer(expiring))
    assert (answer.status_code, answer.json()["detail"]) == (
        401,
        "The key has expired; ask for another.",
    )


def test_a_damaged_file_refuses_all_but_probes(guarded: TestClient, file: Path) -> None:
    token = create_key(file, "web")
    file.write_bytes(file.read_bytes()[:-9])
    answer = guarded.get("/v1/items", headers=bearer(token))
    assert (answer.status_code, str(file) in answer.text) == (503, False)
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/v1/items").status_code == 401


def test_metrics_are_open_by_option_only(index: Index, embedder: Embedder, file: Path) -> None:
    app = make_app(index, embedder, keyring=Keyring(file), open_metrics=True)
    with TestClient(app) as client:
        client.get("/v1/items")
        metrics = client.get("/metrics")
        assert metrics.status_code == 200
        assert 'featkit_requests_total{route="unknown",status="401"} 1.0' in metrics.text
        assert client.post("/metrics").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/items", "read"),
        ("HEAD", "/v1/items/5/thumbnail", "read"),
        ("GET", "/nowhere", "read"),
        ("POST", "/v1/embed", "read"),
        ("POST", "/v1/embeddings", "read"),
        ("POST", "/v1/search", "read"),
        ("POST", "/v1/indexes/photos/search", "read"),
        ("POST", "/v1/search\n", "read"),
        ("POST", "/v1/search/more", "write"),
        ("PUT", "/v1/search", "write"),
        ("POST", "/v1/items", "write"),
        ("DELETE", "/v1/items", "write"),
        ("PATCH", "/v1/items/5", "write"),
        ("NONSENSE", "/v1/items", "write"),
        ("POST", "/nowhere", "write"),
        ("GET", "/v1/admin", "admin"),
        ("GET", "/v1/admin\n", "admin"),
        ("POST", "/v1/admin/keys", "admin"),
        ("DELETE", "/v1/admin/a\nb", "admin"),
        ("POST", "/v1/indexes/photos/swap", "admin"),
        ("POST", "/v1/indexes/photos/swap\n", "admin"),
        ("POST", "/v1/indexes/photos/swapped", "write"),
    ],
)
def test_the_scope_of_a_route(method: str, path: str, scope: str) -> None:
    assert scope_for(method, path) == scope


PATHS = ("/v1/admin", "/v1/admin/x", "/v1/indexes/{name}/swap", "/v1/search", "/v1/items", "/livez")
ROUTED = FastAPI()
for each in PATHS:
    ROUTED.api_route(each, methods=["GET", "POST"], name=each)(lambda: None)


@given(
    st.sampled_from(PATHS),
    st.text("/\n\r .%;?#é\x00swapdmin", max_size=3),
    st.integers(0, 30),
    st.sampled_from(["", "/photos", "/v1"]),
)
@example("/v1/indexes/{name}/swap", "\n", 30, "")
@example("/v1/admin", "\n", 30, "/photos")
def test_the_guard_sees_the_route_that_answers(
    route: str, extra: str, position: int, root: str
) -> None:
    path = route.replace("{name}", "photos")
    path = path[:position] + extra + path[position:]
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": root + path,
        "root_path": root,
        "headers": [],
    }
    answering = [
        each.path  # type: ignore[attr-defined]
        for each in ROUTED.routes
        if getattr(each, "methods", None) == {"GET", "POST"}
        and each.matches(scope)[0].name == "FULL"
    ]
    if answering:
        assert scope_for("POST", path) == scope_for("POST", answering[0].replace("{name}", "n"))


def test_a_missing_scope_is_named(guarded: TestClient, file: Path) -> None:
    tokens = {
        scope: create_key(file, scope, scopes=(scope,)) for scope in ("read", "write", "admin")
    }
    asked = {"read": ("GET", "/v1/items"), "write": ("DELETE", "/x"), "admin": ("GET", "/v1/admin")}
    for scope, token in tokens.items():
        for needed, (method, path) in asked.items():
            answer = guarded.request(method, path, headers=bearer(token))
            if scope == needed:
                assert answer.status_code in (200, 404)
                continue
            assert answer.status_code == 403
            assert answer.json()["detail"] == (
                f"The key lacks the scope {needed}, which this request needs."
            )
            assert answer.headers["www-authenticate"] == (
                f'Bearer realm="featkit", error="insufficient_scope", scope="{needed}"'
            )


def test_a_search_in_the_root_path_needs_a_key(
    index: Index, embedder: Embedder, file: Path
) -> None:
    token = create_key(file, "web")
    app = make_app(index, embedder, keyring=Keyring(file))
    with TestClient(app, root_path="/photos") as client:
        assert client.get("/photos/healthz").status_code == 200
        assert client.get("/photos/v1/items").status_code == 401
        assert client.get("/photos/v1/items", headers=bearer(token)).status_code == 200


# How requests reach an ASGI app: names in lower case, any bytes as values.
NAMES = st.sampled_from([b"authorization", b"x-api-key", b"content-length", b"x-other"])
VALUES = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=40).map(lambda value: b"Bearer " + value),
    st.just(b"featkit_01234567_" + b"ab" * 32),
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
@example([(b"authorization", b"Bearer")])
@example([(b"authorization", b"Bearer \xff\xfe"), (b"x-api-key", b"\xe9")])
@example([(b"content-length", b"1" * 5000)])
@example([(b"content-length", "٣".encode())])
def test_no_headers_pass_without_a_key(headers: list[tuple[bytes, bytes]]) -> None:
    status, detail = answered(headers)
    sent = {value.strip() for name, value in headers if name == b"x-api-key"}
    for name, value in headers:
        words = value.strip().split(b" ", 1)
        if name == b"authorization" and words[0].lower() == b"bearer":
            sent.add(words[1].strip() if len(words) > 1 else b"")
    assert credentials({"headers": headers}) == sent
    assert status == 401
    wanted = ("needs a key", "is not valid", "has several keys")[min(len(sent), 2)]
    assert wanted in detail


def answered(headers: list[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Return the status and detail of a guard that has one key, which is not sent."""
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the request has passed")

    class NoKeys(Keyring):
        def __init__(self) -> None:
            pass

        def find(self, _: bytes) -> None:
            return None

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/items", "headers": headers}
    asyncio.run(KeyGuard(app, NoKeys())(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"]


def test_a_websocket_never_passes(file: Path) -> None:
    sent: list[Message] = []

    async def app(*_: object) -> None:
        raise AssertionError("the request has passed")

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/livez", "headers": []}
    asyncio.run(KeyGuard(app, Keyring(file))(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_hostile_headers_on_a_real_connection(file: Path) -> None:
    token = create_key(file, "web").encode()
    with serving(echo_app(Keyring(file))) as address:
        host, port = address.removeprefix("http://").split(":")

        def status(head: bytes) -> bytes:
            with socket.create_connection((host, int(port))) as connection:
                connection.settimeout(20)
                connection.sendall(
                    b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n"
                )
                return connection.recv(100).split(b" ")[1]

        no_body = b"Content-Length: 0\r\n"
        assert status(no_body + b"X-Api-Key: " + token + b"\r\n") == b"200"
        for value in (b"\xff\xfe", b"x" * 50_000, b"", b"featkit_", token + b"\xa0", token * 2):
            assert status(no_body + b"X-Api-Key: " + value + b"\r\n") == b"401"
            assert status(no_body + b"Authorization: Bearer " + value + b"\r\n") == b"401"
        assert status(no_body + b"X-Api-Key: " + b"x" * 200_000 + b"\r\n") == b"400"
        assert status(no_body + b"X-Api-Key : " + token + b"\r\n") == b"400"
        assert status(no_body + b"X-Api-Key:\r\n " + token + b"\r\n") in (b"200", b"400")
        # refused before the body, which never comes
        assert status(b"Content-Length: 1000000\r\n") == b"401"
        assert status(b"Content-Length: 1000000\r\nExpect: 100-continue\r\n") == b"401"
