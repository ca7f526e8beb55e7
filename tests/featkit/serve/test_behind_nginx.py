"""The service behind a real nginx: at its root and below a path, with TLS ended outside."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request

from featkit.embedder import Embedder
from featkit.errors import FeatkitError
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.client import Client
from featkit.serve.keyring import Keyring
from featkit.serve.keys import create_key
from featkit.serve.proxy import Proxy
from featkit.serve.rates import Rate
from tests.docs.pages import DOCS, blocks
from tests.featkit.serve.conftest import LIMITS, files, image
from tests.featkit.serve.nginx import location, nginx
from tests.serving import serving

NAMED = {"Host": "photos.example"}
ALLOWED = Proxy(allow_hosts=("photos.example",))


def test_at_the_root_with_its_public_name(index: Index, embedder: Embedder, tmp_path: Path) -> None:
    app = make_app(index, embedder, limits=LIMITS)
    with serving(app, ALLOWED) as service, nginx(tmp_path, location("/", service)) as address:
        answer = httpx.get(f"{address}/v1/items/3", headers=NAMED).json()
        assert answer["thumbnail"] == "/v1/items/3/thumbnail"
        thumbnail = httpx.get(address + answer["thumbnail"], headers=NAMED)
        assert thumbnail.headers["content-type"] == "image/jpeg"
        etag = {"If-None-Match": thumbnail.headers["etag"]}
        again = httpx.get(address + answer["thumbnail"], headers=NAMED | etag)
        assert again.status_code == 304
        found = httpx.post(f"{address}/v1/search", files=files(5), headers=NAMED).json()
        assert found["images"][0]["hits"][0]["key"] == "blocks/5.png"
        evil = httpx.get(f"{address}/v1/items", headers={"Host": "evil.example"})
        assert (evil.status_code, "--allow-host" in evil.json()["detail"]) == (400, True)
        probe = httpx.get(f"{address}/livez", headers={"Host": "10.1.2.3"})
        assert probe.status_code != 400


@pytest.mark.parametrize("removes_it", [True, False])
def test_below_a_path_answers_lead_to_its_routes(
    index: Index, embedder: Embedder, tmp_path: Path, removes_it: bool
) -> None:
    app = make_app(index, embedder, limits=LIMITS)
    proxy = Proxy(allow_hosts=("photos.example",), root_path="/tools/photos")
    with serving(app, proxy) as service:
        # with a path in proxy_pass, nginx replaces that of the location by it
        upstream = f"{service}/" if removes_it else service
        with nginx(tmp_path, location("/tools/photos/", upstream)) as address:
            below = f"{address}/tools/photos"
            found = httpx.post(f"{below}/v1/search", files=files(5), headers=NAMED).json()
            thumbnail = found["images"][0]["hits"][0]["thumbnail"]
            assert thumbnail == "/tools/photos/v1/items/5/thumbnail"
            assert httpx.get(address + thumbnail, headers=NAMED).content[:2] == b"\xff\xd8"
            spec = httpx.get(f"{below}/openapi.json", headers=NAMED).json()
            assert spec["servers"] == [{"url": "/tools/photos"}]
            slash = httpx.get(f"{below}/v1/items/", headers=NAMED)
            assert (slash.status_code, slash.headers["location"]) == (
                307,
                "https://photos.example/tools/photos/v1/items",
            )
            # a health check of the service itself knows no path
            assert httpx.get(f"{service}/healthz").status_code == 200


def test_the_client_works_through_nginx_with_a_key(
    index: Index, embedder: Embedder, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    token = create_key(file, "web", image_rate=Rate(per_second=1e-3, burst=3))
    app = make_app(index, embedder, limits=LIMITS, keyring=Keyring(file))
    proxy = Proxy(root_path="/photos", allow_hosts=("127.0.0.1",))
    with (
        serving(app, proxy) as service,
        nginx(tmp_path, location("/photos/", f"{service}/")) as address,
    ):
        with (
            Client(f"{address}/photos", api_key="") as client,
            pytest.raises(FeatkitError, match="needs a key"),
        ):
            client.embed([image(1)])
        with Client(f"{address}/photos", api_key=token) as client:
            vectors = client.embed([image(1)])
        np.testing.assert_allclose(vectors, embedder.embed([image(1)]), atol=1e-6)
        assert httpx.get(f"{address}/photos/healthz").status_code == 200
        assert httpx.get(f"{address}/photos/nowhere").status_code == 401
        # larger than what nginx keeps in memory, and refused before the service reads it
        for _ in range(5):
            large = httpx.post(f"{address}/photos/v1/embed", content=bytes(20 * 2**20))
            assert large.status_code == 401
        headers = {"X-Api-Key": token}
        answers = [
            httpx.post(f"{address}/photos/v1/embed", files=files(1, 2), headers=headers)
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert int(answers[1].headers["retry-after"]) <= 2000


def test_the_client_behind_tls_is_seen(tmp_path: Path) -> None:
    app = FastAPI()

    @app.get("/seen")
    def seen(request: Request) -> tuple[str, str]:
        assert request.client is not None
        return request.client.host, str(request.url)

    own = {"X-Forwarded-For": "203.0.113.9", **NAMED}
    for trusted, wanted in (
        (("127.0.0.1",), ["203.0.113.9", "https://photos.example/seen"]),
        (("10.0.0.0/8",), ["127.0.0.1", "http://photos.example/seen"]),
    ):
        proxy = Proxy(allow_hosts=("photos.example",), forwarded_allow_ips=trusted)
        with serving(app, proxy) as service, nginx(tmp_path, location("/", service)) as address:
            # nginx appends 127.0.0.1, its client, which is trusted; the one before it is not
            assert httpx.get(f"{address}/seen", headers=own).json() == wanted


def test_the_location_of_the_documentation_works(
    index: Index, embedder: Embedder, tmp_path: Path
) -> None:
    (block,) = blocks(DOCS / "howto" / "serve.md", "nginx")
    proxy = Proxy(allow_hosts=("photos.example",), root_path="/search")
    app = make_app(index, embedder, limits=LIMITS)
    with serving(app, proxy) as service:
        assert "http://127.0.0.1:8000/" in block.text
        documented = block.text.replace("http://127.0.0.1:8000", service)
        with nginx(tmp_path, documented) as address:
            item = httpx.get(f"{address}/search/v1/items/3", headers=NAMED).json()
            assert item["thumbnail"] == "/search/v1/items/3/thumbnail"
            thumbnail = httpx.get(address + item["thumbnail"], headers=NAMED)
            assert thumbnail.content[:2] == b"\xff\xd8"
