"""Names of the service, and what it accepts from a proxy."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path

from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.client import Client
from featkit.serve.proxy import Proxy, guard_hosts, route_path
from featkit.serve.running import bind
from featkit.serve.schemas import Refusal
from tests.featkit.serve.conftest import LIMITS, files, image
from tests.serving import serving

OWN_NAMES = ("localhost", "127.0.0.1", "[::1]", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000")
FOREIGN_NAMES = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "[::1].evil.example",
    "192.168.0.7",
    "[::2]:8000",
    "",
)


def status_for(host: str, bound_to: str, *allow_hosts: str, path: str = "/") -> int:
    """Return the status that an app bound to an address answers to a Host header."""
    app = FastAPI()
    app.get(path)(lambda: "private")
    with bind(bound_to, 0) as listener:
        client = TestClient(guard_hosts(app, listener, allow_hosts))
        answer = client.get(path, headers={"Host": host})
    if answer.status_code != 200:
        assert "not a name of this machine" in Refusal.model_validate(answer.json()).detail
        assert "private" not in answer.text
    return answer.status_code


@pytest.mark.parametrize("host", OWN_NAMES)
def test_loopback_answers_to_this_machines_names(host: str) -> None:
    assert status_for(host, "127.0.0.1") == 200


@pytest.mark.parametrize("host", FOREIGN_NAMES)
def test_loopback_refuses_a_domain_that_resolves_to_it(host: str) -> None:
    assert status_for(host, "127.0.0.1") == 400


def test_another_loopback_address_answers_to_itself() -> None:
    assert [
        status_for(host, "127.0.0.2") for host in ("127.0.0.2:80", "localhost", "127.0.0.3")
    ] == [200, 200, 400]


def test_other_addresses_answer_to_every_name() -> None:
    assert [status_for(host, "0.0.0.0") for host in ("photos.example", "192.168.0.7:8000")] == [
        200,
        200,
    ]


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("photos.example", "photos.example", 200),
        ("photos.example", "PHOTOS.example:8443", 200),
        ("Photos.Example", "photos.example", 200),
        ("photos.example", "localhost:8000", 200),
        ("photos.example", "www.photos.example", 400),
        ("photos.example", "photos.example.evil.example", 400),
        ("photos.example", "photos.example, evil.example", 400),
        ("*.example", "a.b.example", 200),
        ("*.example", "example", 400),
        ("*.example", "evilexample", 400),
        ("192.168.0.7", "192.168.0.7:80", 200),
        ("[2001:db8::1]", "[2001:db8::1]:8000", 200),
        ("*", "anything.example", 200),
    ],
)
@pytest.mark.parametrize("bound_to", ["127.0.0.1", "0.0.0.0"])
def test_an_allowed_name_is_answered(bound_to: str, allowed: str, host: str, status: int) -> None:
    Proxy(allow_hosts=(allowed,))  # is a name
    assert status_for(host, bound_to, allowed) == status


def test_health_checks_may_use_any_name() -> None:
    for path, status in (("/livez", 200), ("/readyz", 200), ("/healthz", 400), ("/livez/a", 400)):
        assert status_for("10.1.2.3:8000", "127.0.0.1", path=path) == status
        assert status_for("10.1.2.3:8000", "0.0.0.0", "photos.example", path=path) == status


@pytest.mark.parametrize(
    "values",
    [
        *({"allow_hosts": (host,)} for host in ("", "http://a", "a:80", "a/b", "é.example", "a b")),
        *({"allow_hosts": (host,)} for host in ("a.*", "*a", "**", "a\n", "*.", "[::1", "-")),
        *({"forwarded_allow_ips": (ip,)} for ip in ("", "a", "10.0.0.1/8", "10.0.0.0/33", "* ")),
        *({"root_path": path} for path in ("/", "a", "/a/", "//a", "/a//b", "/../a", "/a/.", "/é")),
        *({"root_path": path} for path in ("/v1", "/v1/x", "/a b", "/a?b", "/a%2Fb", "/a\n")),
    ],
    ids=str,
)
def test_wrong_values_are_named(values: dict[str, Any]) -> None:
    ((name, _),) = values.items()
    option = name.replace("_hosts", "_host").replace("_", "-")
    with pytest.raises(InputError, match=f"^--{option} "):
        Proxy(**values)


@pytest.mark.parametrize("root", ["", "/a", "/v2/photos", "/~me/a.b_c-d", "/...", "/v1x"])
def test_root_paths_that_work(root: str) -> None:
    assert Proxy(root_path=root).root_path == root


ROOTS = st.sampled_from(["", "/photos", "/a/b"])


@given(ROOTS, ROOTS, st.text("/photsab.\n%", max_size=12))
def test_the_guards_see_the_path_that_the_routes_see(root: str, start: str, rest: str) -> None:
    scope = {"type": "http", "path": start + rest, "root_path": root}
    if scope["path"] != root:  # the root itself has no route
        assert route_path(scope) == get_route_path(scope)


@pytest.mark.parametrize("removes_it", [True, False])
def test_a_service_below_a_path_names_its_thumbnails(
    index: Index, embedder: Embedder, removes_it: bool
) -> None:
    app = make_app(index, embedder, limits=LIMITS)
    with serving(app, Proxy(root_path="/photos")) as address, httpx.Client() as client:
        called = address if removes_it else f"{address}/photos"
        (answered,) = client.post(f"{called}/v1/search", files=files(3)).json()["images"]
        near = client.get(f"{called}/v1/items/3/neighbors").json()
        items = client.get(f"{called}/v1/items").json()["items"]
        thumbnails = {each["thumbnail"] for each in (*answered["hits"], *near["hits"], *items)}
        assert thumbnails == {f"/photos/v1/items/{number}/thumbnail" for number in range(12)}
        assert near["item"]["thumbnail"] == "/photos/v1/items/3/thumbnail"
        assert client.get(f"{address}/photos/v1/items/3/thumbnail").content[:2] == b"\xff\xd8"
        spec = client.get(f"{called}/openapi.json").json()
        assert spec["servers"] == [{"url": "/photos"}]
        metrics = client.get(f"{called}/metrics").text
        assert 'featkit_requests_total{route="/v1/search",status="200"} 1.0' in metrics


def test_without_a_root_path_nothing_changes(index: Index, embedder: Embedder) -> None:
    app = make_app(index, embedder, limits=LIMITS)
    with TestClient(app) as client:
        assert client.get("/v1/items/3").json()["thumbnail"] == "/v1/items/3/thumbnail"
    with TestClient(app, root_path="/mounted") as client:  # below another app
        item = client.get("/mounted/v1/items/3").json()
        assert item["thumbnail"] == "/mounted/v1/items/3/thumbnail"


def test_the_client_works_below_a_path(index: Index, embedder: Embedder) -> None:
    app = make_app(index, embedder, limits=LIMITS)
    with serving(app, Proxy(root_path="/photos")) as address, Client(f"{address}/photos") as client:
        (hits,) = client.search([image(3)], k=1)
        assert (hits[0].key, hits[0].thumbnail) == ("blocks/3.png", "/photos/v1/items/3/thumbnail")
        assert client.thumbnail(3)[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("trusted", "client", "scheme"),
    [
        (None, "203.0.113.9", "https"),  # the default trusts this machine
        (("127.0.0.0/8",), "203.0.113.9", "https"),
        (("*",), "198.51.100.1", "https"),  # everybody, so the first address counts
        (("10.0.0.0/8",), "127.0.0.1", "http"),
    ],
)
def test_forwarded_headers_count_from_trusted_senders(
    trusted: tuple[str, ...] | None, client: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    app = FastAPI()

    @app.get("/")
    def seen(request: Request) -> tuple[str, str]:
        assert request.client is not None
        return request.client.host, request.url.scheme

    headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9", "X-Forwarded-Proto": "https"}
    with serving(app, Proxy(forwarded_allow_ips=trusted)) as address:
        assert httpx.get(address, headers=headers).json() == [client, scheme]
