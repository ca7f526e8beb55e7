"""Keys, batches, pages and formats: what both clients share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit import Client
from featkit.errors import EnvironmentProblem, InputError
from featkit.serve.client import paging
from featkit.serve.client.parts import batches
from featkit.serve.schemas import Item, ItemsAnswer
from tests.featkit.serve.client.scripts import ADDRESS, NO_ITEMS, Script, answer, embedded
from tests.sentences import refused


def raw(body: bytes) -> httpx.Response:
    """Return an answer of raw float32."""
    return answer(body=body, content_type="application/octet-stream")


def test_importing_featkit_loads_no_client() -> None:
    code = (
        "import sys, featkit; assert not {'torch', 'httpx', 'faiss'} & set(sys.modules);"
        "featkit.Client, featkit.AsyncClient; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_key_is_sent_as_a_bearer_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATKIT_API_KEY", "from-the-environment")
    script = Script(answer())
    script.client(api_key="given").items()
    script.client().items()
    monkeypatch.delenv("FEATKIT_API_KEY")
    script.client().items()
    sent = [request.headers.get("authorization") for request in script.requests]
    assert sent == ["Bearer given", "Bearer from-the-environment", None]


@pytest.mark.parametrize("key", ["se cret", "secret\n", "secret\x00", "sécret"])
def test_what_no_header_can_hold_is_no_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        Script(answer()).client(api_key=key)
    assert "cret" not in str(caught.value)
    if "\x00" not in key:
        monkeypatch.setenv("FEATKIT_API_KEY", key)
        with refused("FEATKIT_API_KEY is not a key"):
            Script(answer()).client()


@pytest.mark.parametrize(
    ("status", "detail"), [(401, "The key is not known."), (403, "The key may only read.")]
)
def test_service_refuses_a_key(status: int, detail: str) -> None:
    script = Script(answer(status, f'{{"detail": "{detail}", "images": []}}'))
    with refused(detail, error=InputError):
        script.client(api_key="k").items()


@pytest.mark.parametrize("address", ["http://x/search", "http://x/search/"])
def test_a_path_of_the_address_is_kept(address: str) -> None:
    script = Script(answer())
    Client(address, transport=httpx.MockTransport(script)).items()
    assert script.requests[0].url.path == "/search/v1/items"


def test_cookies_are_not_kept() -> None:
    strange = httpx.Response(200, headers=[(b"set-cookie", b"a=\xf6")], content=NO_ITEMS)
    script = Script(answer(set_cookie="a=1"), strange, answer())
    client = script.client()
    for _ in range(3):
        client.items()
    assert all("cookie" not in request.headers for request in script.requests)


def test_another_programs_refusal_is_not_the_services() -> None:
    script = Script(answer(401, '{"detail": "Not authenticated"}'))
    with refused("401", "Not authenticated", "login", error=EnvironmentProblem):
        script.client().items()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 50))
def test_batches_keep_order_and_limits(sizes: list[int], most: int, num_bytes: int) -> None:
    images = [bytes([index]) * size for index, size in enumerate(sizes)]
    made = [*batches(iter(images), max_images=most, max_bytes=num_bytes)]
    assert [data for batch in made for _, data in batch] == images
    for batch in made:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(len(data) for _, data in batch) <= num_bytes
    # an earlier end of a batch would be needless
    for batch, later in pairwise(made):
        grown = sum(len(data) for _, data in batch) + len(later[0][1])
        assert len(batch) == most or grown > num_bytes


def test_images_are_read_when_their_request_is_due() -> None:
    read: list[int] = []
    script = Script(embedded([[1.0], [1.0]]))

    def images() -> Iterator[bytes]:
        for index in range(8):
            read.append(index)
            # one image is read to know that a batch is full
            assert index <= 2 * len(script.requests) + 2
            yield b"x"

    assert script.client(images_per_request=2).embed(images()).shape == (8, 1)
    assert len(read) == 8


def test_names_count_over_all_requests() -> None:
    script = Script(embedded([[1.0]]))
    script.client(images_per_request=1).embed([b"a", b"b"])
    assert b'filename="image 1"' in script.bodies[1]


def test_vectors_of_several_requests_are_of_one_model() -> None:
    script = Script(embedded([[1.0, 0.0]]), embedded([[0.0, 1.0]], fingerprint="g"))
    with refused("different models", error=EnvironmentProblem):
        script.client(images_per_request=1).embed([b"a", b"b"])
    vectors = [raw(np.eye(n, dtype="<f4")[0].tobytes()) for n in (2, 3)]
    with refused("different models", error=EnvironmentProblem):
        Script(*vectors).client(images_per_request=1).embed([b"a", b"b"])


def test_hits_of_several_requests_are_of_one_model() -> None:
    found = [
        httpx.Response(
            200,
            json={
                "fingerprint": fingerprint,
                "images": [{"name": "a", "height": 1, "width": 1, "hits": []}],
            },
        )
        for fingerprint in "fg"
    ]
    with refused("different models", error=EnvironmentProblem):
        Script(*found).client(images_per_request=1).search([b"a", b"b"])


def test_raw_vectors_are_taken_if_they_are_answered() -> None:
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype("<f4")
    script = Script(raw(vectors.tobytes()))
    made = script.client().embed([b"a", b"b", b"c"])
    np.testing.assert_array_equal(made, vectors)
    assert made.dtype == np.float32
    made[0] = 0  # the caller's own
    assert script.requests[0].headers["accept"].startswith("application/octet-stream, ")
    # a proxy may have changed the type's spelling
    spelled = answer(body=vectors.tobytes(), content_type="Application/Octet-Stream; a=b")
    np.testing.assert_array_equal(Script(spelled).client().embed([b"a", b"b", b"c"]), vectors)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "a size that 2 vectors cannot have"),
        (b"\x00" * 12, "a size that 2 vectors cannot have"),
        (b"\x00" * 16, "not of unit length"),
        (np.full((2, 2), np.nan, "<f4").tobytes(), "not of unit length"),
        (np.full((2, 2), 1e30, "<f4").tobytes(), "not of unit length"),
        (b"<!DOCTYPE html><title>a login</title>   ", "not of unit length"),
    ],
)
def test_raw_garbage_is_not_vectors(body: bytes, words: str) -> None:
    with refused("200", words, "check the address", error=EnvironmentProblem):
        Script(raw(body)).client().embed([b"a", b"b"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e39", "0.5", '"x"', "null"])
def test_json_vectors_are_of_unit_length(number: str) -> None:
    one = f'{{"name": "a", "height": 1, "width": 1, "vector": [{number}, 0]}}'
    body = f'{{"model": "m", "fingerprint": "f", "width": 2, "images": [{one}]}}'
    with refused("200", "check the address", error=EnvironmentProblem):
        Script(answer(body=body)).client().embed([b"a"])


@pytest.mark.parametrize(
    ("score", "num_hits", "words"),
    [("NaN", 1, "scores that are not numbers"), ("0.5", 3, "3 hits instead of at most 2")],
)
def test_foreign_hits_are_reported(score: str, num_hits: int, words: str) -> None:
    item = '"id": 1, "key": "a", "width": 1, "height": 1, "metadata": {}, "thumbnail": "/t"'
    hits = ", ".join([f'{{{item}, "score": {score}}}'] * num_hits)
    found = f'{{"name": "a", "height": 1, "width": 1, "hits": [{hits}]}}'
    script = Script(answer(body=f'{{"fingerprint": "f", "images": [{found}]}}'))
    with refused(words, error=EnvironmentProblem):
        script.client().search([b"a"], k=2)
    script = Script(answer(body=f'{{"item": {{{item}}}, "hits": [{hits}]}}'))
    with refused(words, error=EnvironmentProblem):
        script.client().neighbors(1, k=2)


def listed(ids: list[int]) -> ItemsAnswer:
    items = [Item(id=i, key=str(i), width=1, height=1, metadata={}, thumbnail="/t") for i in ids]
    return ItemsAnswer(total=len(ids), items=items)


@given(st.data())
def test_pages_have_every_item_that_stays_once(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 60), unique=True, max_size=30).map(sorted), "ids")
    size = data.draw(st.integers(2, 6), "page size")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "PAGE_SIZE", size)
        pages = paging.Pages(ADDRESS, None)
        stayed, came = set(ids), []
        for _ in range(200):
            if pages.has_ended:
                break
            parameters = pages.call().arguments["params"]
            start, stop = parameters["offset"], parameters["offset"] + parameters["limit"]
            came += [item.id for item in pages.take(listed(ids[start:stop]))]
            removed = set(data.draw(st.lists(st.sampled_from([-1, *ids]), max_size=3), "removed"))
            ids = [i for i in ids if i not in removed]
            stayed -= removed
            if data.draw(st.booleans(), "others add one") and len(ids) < 40:
                ids = [*ids, max([60, *ids]) + 1]
        assert pages.has_ended
    assert came == sorted(set(came))
    assert stayed <= set(came)


@pytest.mark.parametrize("ids", [[3, 2], [2, 2]])
def test_items_out_of_order_are_reported(ids: list[int]) -> None:
    script = Script(answer(body=listed(ids).model_dump_json()))
    with refused("lists items in another order", error=EnvironmentProblem):
        [*script.client().iter_items()]


def test_the_same_page_for_ever_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_SIZE", 3)
    script = Script(answer(body=listed([1, 2, 3]).model_dump_json()))
    with refused("lists items in another order", error=EnvironmentProblem):
        [*script.client().iter_items()]


def test_pages_are_fetched_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_SIZE", 2)
    script = Script(answer(body=listed([1, 2]).model_dump_json()))
    items = script.client().iter_items(where="id")
    assert script.requests == []
    assert next(items).id == 1
    assert len(script.requests) == 1
    assert script.requests[0].url.params["where"] == "id"


def test_more_items_than_asked_for_are_reported() -> None:
    script = Script(answer(body=listed([1, 2, 3]).model_dump_json()))
    with refused("3 items instead of at most 2", error=EnvironmentProblem):
        script.client().items(limit=2)
