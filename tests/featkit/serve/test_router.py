"""Answers and refusals of the routes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from featkit.backends import Run
from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.index import Index, Proof, Refinement
from featkit.serve.app import make_app
from featkit_export.precision import lower
from tests.featkit.serve.conftest import LIMITS, NUM_IMAGES, files, image, png
from tests.model_files import make_model_file


def test_embed_gives_the_embedders_vectors_in_order(client: TestClient, embedder: Embedder) -> None:
    answer = client.post("/v1/embed", files=files(3, 1)).json()
    assert answer["fingerprint"] == embedder.fingerprint
    assert [(one["name"], one["height"], one["width"]) for one in answer["images"]] == [
        ("3.png", 48, 64),
        ("1.png", 48, 64),
    ]
    vectors = np.array([one["vector"] for one in answer["images"]], np.float32)
    np.testing.assert_allclose(vectors, embedder.embed([image(3), image(1)]), atol=1e-6)


def test_search_finds_each_image_itself_first(client: TestClient) -> None:
    answer = client.post("/v1/search", files=files(5, 2), data={"k": "3"}).json()
    assert [len(one["hits"]) for one in answer["images"]] == [3, 3]
    assert [one["hits"][0]["key"] for one in answer["images"]] == ["blocks/5.png", "blocks/2.png"]
    first = answer["images"][0]["hits"][0]
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert (first["width"], first["height"], first["metadata"]) == (64, 48, {"label": "blocks"})
    scores = [hit["score"] for hit in answer["images"][0]["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_a_filter_limits_hits_items_and_neighbors(client: TestClient) -> None:
    where = "key in ('blocks/1.png', 'blocks/7.png') and label = 'blocks'"
    hits = client.post("/v1/search", files=files(5), data={"where": where}).json()["images"][0]
    assert sorted(hit["key"] for hit in hits["hits"]) == ["blocks/1.png", "blocks/7.png"]
    items = client.get("/v1/items", params={"where": where, "limit": 1}).json()
    assert (items["total"], [item["key"] for item in items["items"]]) == (2, ["blocks/1.png"])
    near = client.get("/v1/items/7/neighbors", params={"where": where, "k": 1}).json()
    assert [hit["key"] for hit in near["hits"]] == ["blocks/7.png"]
    everything = client.post("/v1/search", files=files(5), data={"where": "", "k": "12"}).json()
    assert len(everything["images"][0]["hits"]) == NUM_IMAGES
    assert client.get("/v1/items", params={"where": ""}).json()["total"] == NUM_IMAGES


@pytest.mark.parametrize(
    "values",
    [
        {"min_score": 0.2},
        {"expand": 3},
        {"rerank": 10},
        {"diversity": 0.6},
        {"expand": 2, "rerank": 8, "min_score": 0.1},
    ],
)
def test_hits_are_refined_as_in_python(
    client: TestClient, index: Index, embedder: Embedder, values: dict[str, Any]
) -> None:
    refine = Refinement(**values)
    form = {"k": "5", **{name: str(value) for name, value in values.items()}}
    (found,) = client.post("/v1/search", files=files(4), data=form).json()["images"]
    (hits,) = index.search(vectors=embedder.embed([image(4)]), k=5, refine=refine)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in hits]
    near = client.get("/v1/items/4/neighbors", params={"k": 5, **values}).json()
    wanted = index.search(item=4, k=5, refine=refine)
    assert [hit["id"] for hit in near["hits"]] == [hit.id for hit in wanted]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"expand": "many"}, "expand is 'many'; it must be a whole number."),
        ({"rerank": "1.5"}, "rerank is '1.5'; it must be a whole number."),
        ({"rerank": "1001"}, "it must be a whole number from 0 to 1,000"),
        ({"expand": "9" * 5000}, "expand is '9999"),
        ({"min_score": "nan"}, "min_score is nan"),
        ({"diversity": "2"}, "diversity is 2.0; it must be from 0 to 1."),
        ({"diversity": "0.5", "rerank": "9"}, "use one of them"),
    ],
)
def test_refinements_without_a_meaning_are_refused(
    client: TestClient, values: dict[str, str], words: str
) -> None:
    answer = client.post("/v1/search", files=files(1), data=values)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True)
    assert client.get("/v1/items/1/neighbors", params=values).status_code == 422


def test_empty_fields_of_a_form_refine_nothing(client: TestClient) -> None:
    names = ("min_score", "expand", "rerank", "diversity")
    empty = client.post("/v1/search", files=files(1), data=dict.fromkeys(names, ""))
    assert empty.json() == client.post("/v1/search", files=files(1)).json()


def test_a_wrong_filter_is_refused_with_its_column(client: TestClient) -> None:
    answers = [
        client.post("/v1/search", files=files(1), data={"where": "labl = 'x'"}),
        client.get("/v1/items", params={"where": "labl = 'x'"}),
        client.get("/v1/items/1/neighbors", params={"where": "labl = 'x'"}),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["detail"] == (
            "The filter `labl = 'x'` is wrong at column 1: there is no column 'labl'; did you mean"
            " label?"
        )
    assert client.get("/v1/items", params={"where": "label = 'x' --"}).status_code == 422


def test_one_bad_image_refuses_the_request_by_name(client: TestClient) -> None:
    bad = ("files", ("../etc/notes.jpg", b"dear diary"))
    answer = client.post("/v1/embed", files=[*files(1), bad])
    assert answer.status_code == 422
    assert answer.json()["images"] == [
        {"name": "notes.jpg", "reason": "notes.jpg is not an image in a format that can be read."}
    ]
    assert client.post("/v1/embed", files=files(1)).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xe0 truncated",
        png(1)[:200],
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_not_an_image_is_refused(client: TestClient, data: bytes) -> None:
    answer = client.post("/v1/search", files=[("files", ("x.png", data))])
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("x.png ")


def test_images_over_the_limits_are_refused_before_decoding(client: TestClient) -> None:
    header_of_huge = bytearray(png(1))
    header_of_huge[16:24] = (20_000).to_bytes(4, "big") * 2  # width and height of the IHDR chunk
    header_of_huge[29:33] = zlib.crc32(header_of_huge[12:29]).to_bytes(4, "big")
    answer = client.post("/v1/embed", files=[("files", ("huge.png", bytes(header_of_huge)))])
    assert answer.status_code == 422
    assert "huge.png has 400,000,000 pixels" in answer.json()["detail"]
    long = client.post(
        "/v1/embed", files=[("files", ("long.png", png(1) + bytes(LIMITS.images.max_bytes)))]
    )
    assert long.status_code == 422
    assert "more than the limit of 60,000" in long.json()["detail"]


def test_a_request_that_is_too_long_ends_while_it_streams(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            sent += 65536
            yield bytes(65536)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/embed", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "The request has more bytes than the limit of 150,000."
    claimed = client.post("/v1/embed", content=b"x" * 150_001, headers=headers)
    assert (claimed.status_code, "150,001 bytes" in claimed.json()["detail"]) == (413, True)


def test_wrong_forms_are_refused(client: TestClient) -> None:
    assert client.post("/v1/embed", json={"path": "/etc/passwd"}).status_code == 415
    assert (
        client.post("/v1/embed", files=files(*range(5))).status_code == 422
    )  # at most four are allowed
    assert (
        client.post("/v1/embed", data={"url": "http://x"}, files=[("k", (None, b"3"))])
        .json()["detail"]
        .startswith("No image")
    )
    for k in ("0", "51", "-1", "1e3", "٣", "9" * 5000):
        answer = client.post("/v1/search", files=files(1), data={"k": k})
        assert (answer.status_code, "whole number from 1 to 50" in answer.json()["detail"]) == (
            422,
            True,
        )


def test_paths_and_urls_are_never_opened(client: TestClient, index: Index) -> None:
    path = str(index.path / "catalogue.sqlite")
    for text in (path, f"file://{path}", "http://127.0.0.1/x.png"):
        answer = client.post(
            "/v1/embed", data={"files": text, "k": "3"}, files=[("x", (None, b""))]
        )
        assert (answer.status_code, answer.json()["detail"].startswith("No image")) == (422, True)


def test_thumbnails_are_served_by_id_with_an_etag(client: TestClient, index: Index) -> None:
    answer = client.get("/v1/items/4/thumbnail")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.content == index.thumbnail(4)
    assert answer.headers["cache-control"] == "private, no-cache"
    again = client.get("/v1/items/4/thumbnail", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_cached_thumbnail_of_another_index_is_replaced(
    client: TestClient, embedder: Embedder, model: Path, tmp_path: Path
) -> None:
    kept = client.get("/v1/items/0/thumbnail")
    assert "max-age" not in kept.headers["cache-control"]  # with it, a browser would not ask again
    with Index.create(tmp_path / "other.index", model=model) as other:
        other.add(["other.png"], embedder.embed([image(50)]), thumbnails=[b"another"])
        with TestClient(make_app(other, embedder)) as next_client:
            answer = next_client.get(
                "/v1/items/0/thumbnail", headers={"If-None-Match": kept.headers["etag"]}
            )
    assert (answer.status_code, answer.content) == (200, b"another")


@pytest.mark.parametrize(
    "route",
    ["/v1/items/99", "/v1/items/99/thumbnail", "/v1/items/99/neighbors", f"/v1/items/{2**61}"],
)
def test_unknown_items_are_404(client: TestClient, route: str) -> None:
    assert client.get(route).status_code == 404


def test_invalid_ids_are_refused(client: TestClient) -> None:
    for item_id in ("-1", "x", "..", str(2**80)):
        assert client.get(f"/v1/items/{item_id}/thumbnail").status_code in (404, 422)
    assert (
        client.get(f"/v1/items/{NUM_IMAGES - 1}/thumbnail").status_code == 404
    )  # it has no thumbnail


def test_neighbors_of_an_item_start_with_itself(client: TestClient) -> None:
    answer = client.get("/v1/items/7/neighbors?k=4").json()
    assert answer["item"]["key"] == answer["hits"][0]["key"] == "blocks/7.png"
    assert len(answer["hits"]) == 4
    assert client.get("/v1/items/7/neighbors?k=51").status_code == 422


def test_neighbors_has_the_old_spelling_as_a_hidden_alias(client: TestClient) -> None:
    old, new = (
        client.get(f"/v1/items/7/{spelling}?k=4").json()
        for spelling in ("neighbours", "neighbors")  # quoted
    )
    assert old == new
    assert "neighbours" not in client.get("/openapi.json").text  # quoted


def test_items_are_listed_and_sampled(client: TestClient) -> None:
    page = client.get("/v1/items?offset=2&limit=3").json()
    assert (page["total"], [item["id"] for item in page["items"]]) == (NUM_IMAGES, [2, 3, 4])
    first, same, other = (
        client.get(f"/v1/sample?limit=5&seed={seed}").json()["items"] for seed in (1, 1, 2)
    )
    assert first == same != other
    assert len({item["id"] for item in first}) == 5
    assert len(client.get("/v1/sample?limit=200").json()["items"]) == NUM_IMAGES


def test_a_sample_is_full_if_most_items_were_removed(
    embedder: Embedder, model: Path, tmp_path: Path
) -> None:
    keys = [f"{number}.png" for number in range(600)]
    with Index.create(tmp_path / "thinned.index", model=model) as thinned:
        thinned.add(keys, np.repeat(embedder.embed([image(0)]), len(keys), axis=0))
        thinned.remove(key for number, key in enumerate(keys) if number % 50)
        with TestClient(make_app(thinned, embedder)) as client:
            assert len(client.get("/v1/sample?limit=10").json()["items"]) == 10


def test_health_names_model_and_backend(client: TestClient, embedder: Embedder) -> None:
    answer = client.get("/healthz").json()
    assert answer["status"] == "ok"
    assert answer["num_items"] == NUM_IMAGES
    assert (answer["fingerprint"], answer["backend"]) == (
        embedder.fingerprint,
        embedder.backend_name,
    )


def test_an_index_of_another_model_is_refused(index: Index, tmp_path: Path) -> None:
    other = Embedder(make_model_file(tmp_path / "other.onnx", width=32, seed=1))
    with pytest.raises(InputError, match="was built by model"):
        make_app(index, other)


def test_a_proven_equal_model_serves_the_index(
    index: Index, embedder: Embedder, model: Path, tmp_path: Path
) -> None:
    lower(model, tmp_path / "half.onnx", precision="fp16")
    half = index.open_embedder(tmp_path / "half.onnx", limits=LIMITS.images)
    assert half.fingerprint != index.fingerprint == embedder.fingerprint
    with TestClient(make_app(index, half, limits=LIMITS)) as client:
        answer = client.post("/v1/search", files=files(5), data={"k": "2"}).json()
        assert client.get("/healthz").json()["fingerprint"] == half.fingerprint
    hits = answer["images"][0]["hits"]
    assert hits[0]["key"] == "blocks/5.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert hits[1]["score"] < 0.999


def test_an_incompatible_embedder_is_refused(
    model: Path, embedder: Embedder, tmp_path: Path
) -> None:
    with Index.create(
        tmp_path / "coarse.index", model=model, run=Run("openvino", "bf16")
    ) as coarse:
        with pytest.raises(
            InputError, match=r"was made by openvino bf16, but .* is run by onnxruntime fp32; open"
        ):
            make_app(coarse, embedder)
        coarse.keep_proof(
            Proof(
                backend="openvino",
                precision="bf16",
                num_images=2,
                least_cosine=1,
                mean_cosine=1,
                recall_lost=0,
            )
        )
        with TestClient(make_app(coarse, embedder)) as client:
            assert client.get("/healthz").json()["backend"] == embedder.backend_name
