"""The client with the service on a real port, and with foreign answers."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index, Refinement
from featkit.serve.client import Client
from featkit.serve.running import bind
from tests.featkit.serve.client.scripts import HEALTH, FakeClock, Script, answer
from tests.featkit.serve.conftest import NUM_IMAGES, png
from tests.featkit.serve.conftest import image as drawn
from tests.sentences import refused


def test_client_embeds_searches_and_fetches(
    live_address: str, embedder: Embedder, index: Index, tmp_path: Path
) -> None:
    file = tmp_path / "query.png"
    file.write_bytes(png(6))
    with Client(live_address) as client:
        assert client.health().num_items == NUM_IMAGES
        np.testing.assert_allclose(
            client.embed([file, png(2)]), embedder.embed([drawn(6), drawn(2)]), atol=1e-6
        )
        (hits,) = client.search([file], k=2)
        assert hits[0].key == "blocks/6.png"
        assert len(hits) == 2
        assert client.neighbors(hits[0].id, k=1)[0].id == hits[0].id
        assert client.thumbnail(hits[0].id) == index.thumbnail(hits[0].id)


def test_client_filters(live_address: str) -> None:
    where = "key like '%1.png'"
    with Client(live_address) as client:
        (hits,) = client.search(drawn(5), where=where)
        assert sorted(hit.key for hit in hits) == ["blocks/1.png", "blocks/11.png"]
        assert [hit.key for hit in client.neighbors(1, where=where, k=1)] == ["blocks/1.png"]
        refine = Refinement(rerank=8, min_score=0.5)
        (hits,) = client.search(drawn(5), refine=refine)
        near = client.neighbors(5, refine=refine)
        assert [hit.id for hit in hits] == [hit.id for hit in near]
        assert all(hit.score >= 0.5 for hit in hits)
        items = client.items(1, 5, where=where)
        assert (items.total, [item.key for item in items.items]) == (2, ["blocks/11.png"])
        assert client.items(limit=3).total == NUM_IMAGES
        with pytest.raises(InputError, match="no column 'kye'; did you mean key"):
            client.search(drawn(5), where="kye = 1")
        with pytest.raises(InputError, match="a filter is text"):
            client.search(drawn(5), where=5)  # type: ignore[arg-type]


def test_threads_share_a_client(live_address: str, embedder: Embedder) -> None:
    seeds = [*range(24)]
    with Client(live_address) as client, ThreadPoolExecutor(8) as pool:
        vectors = [*pool.map(lambda seed: client.embed(png(seed))[0], seeds)]
    expected = embedder.embed([drawn(seed) for seed in seeds])
    np.testing.assert_allclose(np.array(vectors), expected, atol=1e-6)


def test_client_reports_what_the_service_refused(live_address: str) -> None:
    with Client(live_address) as client:
        with pytest.raises(InputError, match="image 0 is not an image"):
            client.embed([b"text"])
        with pytest.raises(InputError, match="There is no item 99"):
            client.thumbnail(99)
        with pytest.raises(InputError, match="No images were given"):
            client.search([])


def test_client_reports_that_nobody_answers() -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with (
        Client(f"http://127.0.0.1:{port}", clock=FakeClock()) as client,
        pytest.raises(EnvironmentProblem, match="does not answer"),
    ):
        client.health()


PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>login</body></html>"


def answering(status: int, body: str | bytes, **headers: str) -> Client:
    """Return a client whose address gives the same answer to every request."""
    script = Script(answer(status, body, **headers))
    return script.client()


def failing(error: Exception) -> Client:
    """Return a client whose address fails at every request."""
    return Script(error).client()


CALLS: dict[str, Callable[[Client], object]] = {
    "health": lambda client: client.health(),
    "embed": lambda client: client.embed([b"x"]),
    "search": lambda client: client.search([b"x"]),
    "neighbors": lambda client: client.neighbors(3),
    "thumbnail": lambda client: client.thumbnail(3),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "body", "headers", "words"),
    [
        (200, PAGE, {"content_type": "text/html"}, ["200", "an HTML page", "check the address"]),
        (200, '{"a": 1}', {"content_type": "application/json"}, ["200", "check the address"]),
        (200, "", {}, ["200", "0 bytes", "check the address"]),
        (200, b"\xff\x00\xfe", {"content_type": "application/json"}, ["200", "check the address"]),
        (200, HEALTH[:40], {"content_type": "application/json"}, ["200", "check the address"]),
        (200, "[" * 100_000, {}, ["200", "check the address"]),
        (204, "", {}, ["204", "check the address"]),
        (
            302,
            "",
            {"location": "https://login.example/?next=x"},
            ["302", "redirects to https://login.example/?next=x"],
        ),
        (401, PAGE, {}, ["401", "login"]),
        (403, PAGE, {}, ["403", "forbids access"]),
        (404, PAGE, {}, ["404", "check the address"]),
        (404, '{"detail": "Not Found"}', {}, ["404", "check the address"]),
        (407, "", {}, ["407", "proxy"]),
        (
            413,
            "<html>413 Request Entity Too Large</html>",
            {},
            ["413", "fewer or smaller images"],
        ),
        (418, "", {}, ["418", "check the address"]),
        (429, "slow down", {"retry_after": "7"}, ["429", "wait 7 s"]),
        (429, "", {"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, ["429", "too many requests"]),
        (500, "Internal Server Error", {}, ["500", "its log"]),
        (502, PAGE, {}, ["502", "a proxy cannot reach"]),
        (
            503,
            '{"detail": "The index cannot be read now.", "images": []}',
            {},
            ["503", "The index cannot be read now"],
        ),
        (504, PAGE, {}, ["504", "in time"]),
        (599, "[]", {}, ["599", "check the address"]),
    ],
)
def test_foreign_answers_are_reported_with_their_status(
    call: str, status: int, body: str | bytes, headers: dict[str, str], words: list[str]
) -> None:
    with (
        answering(status, body, **headers) as client,
        refused("http://photos.example", *words, error=EnvironmentProblem),
    ):
        CALLS[call](client)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            httpx.ReadTimeout("timed out"),
            "did not answer within 60.0 s (ReadTimeout); send fewer images",
        ),
        (httpx.ConnectTimeout("timed out"), "(ConnectTimeout)"),
        (
            httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body"
            ),
            "does not answer (peer",
        ),
        (httpx.DecodingError("Error -3 while decompressing data"), "does not answer (Error -3"),
        (httpx.TooManyRedirects("too many"), "does not answer"),
        (
            httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            "does not answer ([SSL",
        ),
    ],
)
def test_broken_connections_are_reported(call: str, error: Exception, words: str) -> None:
    with (
        failing(error) as client,
        refused("http://photos.example", words, error=EnvironmentProblem),
    ):
        CALLS[call](client)


def test_a_truncated_answer_is_reported() -> None:
    with bind("127.0.0.1", 0) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + HEALTH.encode()[:50]
                )

        thread = threading.Thread(target=reply)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Client(address, max_attempts=1) as client,
            refused(address, "does not answer", error=EnvironmentProblem),
        ):
            client.health()
        thread.join()


def test_a_silent_service_ends_with_the_deadline() -> None:
    with (
        bind("127.0.0.1", 0) as listener,
        Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=30) as client,
        refused("within the deadline of 0.05 s", error=EnvironmentProblem),
    ):
        client.items(deadline_s=0.05)


@pytest.mark.parametrize(
    "images", ["[]", '[{"name": "a", "height": 1, "width": 1, "vector": [1.0]}]']
)
def test_answers_must_match_the_number_of_images(images: str) -> None:
    body = f'{{"model": "m", "fingerprint": "f", "width": 1, "images": {images}}}'
    with (
        answering(200, body) as client,
        refused("200", "results for", "but 2 were sent", error=EnvironmentProblem),
    ):
        client.embed([b"x", b"y"])


def test_vectors_must_have_the_reported_width() -> None:
    one = '{"name": "a", "height": 1, "width": 1, "vector": [1.0]}'
    body = f'{{"model": "m", "fingerprint": "f", "width": 2, "images": [{one}]}}'
    with (
        answering(200, body) as client,
        refused("length is not the width", error=EnvironmentProblem),
    ):
        client.embed([b"x"])


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8000", "photos.example", "", "ftp://x", "http://[::1", "http://a:b", None, 3],
)
def test_an_invalid_address_is_refused(address: object) -> None:
    with refused(error=InputError):
        Client(address)  # type: ignore[arg-type]


def test_the_client_takes_what_an_embedder_takes(
    live_address: str, embedder: Embedder, tmp_path: Path
) -> None:
    file = tmp_path / "caf\udce9 'a\"b'.png"
    file.write_bytes(png(6))
    image = Image.open(io.BytesIO(png(6)))
    expected = embedder.embed([drawn(6)])[0]
    with Client(live_address) as client, file.open("rb") as opened:
        same: list[Any] = [
            file,
            str(file),
            png(6),
            bytearray(png(6)),
            memoryview(png(6)),
            io.BytesIO(png(6)),
            opened,
        ]
        same += [
            image,
            drawn(6),
            {"bytes": png(6), "path": "a.png"},
            {"bytes": None, "path": str(file)},
        ]
        for start in range(0, len(same), 4):  # the most images that the service takes at once
            vectors = client.embed(same[start : start + 4])
            np.testing.assert_allclose(
                vectors, np.repeat(expected[None], len(vectors), axis=0), atol=1e-6
            )
        for one in same:
            ((hit,),) = client.search(one, k=1)
            assert hit.key == "blocks/6.png"
        assert len(client.search((each for each in (png(1), png(2))), k=1)) == 2


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "None; give a path"),
        ([None], "image 0 is None"),
        ([b"x", 7], "image 1 is an int"),
        (7, "is an int"),
        ([["a.jpg"]], "image 0 is a list"),
        ({"label": 3}, "is a mapping with label"),
        ({"a.jpg"}, "images is set"),
        ([io.StringIO("x")], "is open as text"),
        ("/nowhere/cat.jpg", "/nowhere/cat.jpg does not exist"),
        ("http://x/cat.jpg", "is a web address"),
        (np.zeros((3, 4), np.float64), "uint8"),
        ((), "No images were given"),
    ],
)
def test_what_is_not_an_image_is_not_sent(images: Any, words: str) -> None:
    with failing(AssertionError("it was sent")) as client:
        for call in (client.embed, client.search):
            with refused(words):
                call(images)


@pytest.mark.parametrize("value", ["3", None, 2.5, True])
def test_invalid_numbers_are_not_sent(value: Any) -> None:
    with failing(AssertionError("it was sent")) as client:
        for call in (
            lambda: client.search([b"x"], k=value),
            lambda: client.neighbors(value),
            lambda: client.neighbors(1, k=value),
            lambda: client.thumbnail(value),
        ):
            with refused("must be a whole number"):
                call()
