"""OpenAI's own client talks to the service, and what it cannot embed is refused in its shape."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from featkit.embedder import Embedder
from featkit.images import ImageLimits
from featkit.serve.app import make_app
from featkit.serve.keyring import Keyring
from featkit.serve.keys import create_key
from featkit.serve.openai import WrongRequest, read_inputs
from featkit.serve.openai_errors import OpenAIRefusal
from featkit.serve.rates import Rate
from featkit.serve.service import Service, Upload
from tests.featkit.serve.conftest import LIMITS, png
from tests.featkit.serve.conftest import image as drawn
from tests.serving import serving

ROUTE = "/v1/embeddings"


def encoded(seed: int) -> str:
    return base64.b64encode(png(seed)).decode("ascii")


def data_url(seed: int, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{encoded(seed)}"


@pytest.fixture
def official(live_address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_address}/v1", api_key="none", max_retries=0) as client:
        yield client


def model_of(embedder: Embedder) -> str:
    return embedder.manifest.name


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_official_client_gets_vectors(
    official: openai.OpenAI, embedder: Embedder, encoding: Any
) -> None:
    answer = official.embeddings.create(
        model=model_of(embedder),
        input=[data_url(1), data_url(2), data_url(1)],
        encoding_format=openai.omit if encoding is None else encoding,
    )
    assert answer.object == "list"
    assert answer.model == model_of(embedder)
    assert [(row.object, row.index) for row in answer.data] == [
        ("embedding", index) for index in range(3)
    ]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (0, 0)
    # the type of the client's package says that it is always a list
    answered = [cast(Any, row.embedding) for row in answer.data]
    if encoding == "base64":
        answered = [np.frombuffer(base64.b64decode(coded), "<f4") for coded in answered]
    vectors = np.array(answered)
    expected = embedder.embed([drawn(1), drawn(2), drawn(1)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_the_official_async_client_gets_vectors(live_address: str, embedder: Embedder) -> None:
    async def ask() -> list[float]:
        address = f"{live_address}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            answer = await client.embeddings.create(model=model_of(embedder), input=data_url(3))
            return answer.data[0].embedding

    np.testing.assert_allclose(asyncio.run(ask()), embedder.embed([drawn(3)])[0], atol=1e-6)


def test_both_formats_are_the_other_routes_vectors(client: TestClient) -> None:
    files = [("files", ("a.png", png(4)))]
    (image,) = client.post("/v1/embed", files=files).json()["images"]
    floats = client.post(ROUTE, json={"input": data_url(4)}).json()["data"][0]["embedding"]
    coded = client.post(ROUTE, json={"input": data_url(4), "encoding_format": "base64"}).json()
    assert floats == image["vector"]
    raw = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(raw, np.array(floats, np.float32))


@pytest.mark.parametrize(
    "given",
    [
        data_url(5),
        data_url(5, "image/x-anything"),
        data_url(5, "IMAGE/PNG"),
        data_url(5, "application/octet-stream"),
        data_url(5, "image/png;name=a.png;charset=utf-8"),
        data_url(5).replace("data:", "DATA:").replace(";base64,", ";BASE64,"),
        {"image": encoded(5)},
        {"image": data_url(5)},
        {"image": {"url": data_url(5)}},
        {"image_url": data_url(5)},
        {"image_url": {"url": data_url(5), "detail": "low"}},
        {"type": "image_url", "image_url": {"url": data_url(5)}},
    ],
)
def test_images_come_in_every_known_shape(
    client: TestClient, embedder: Embedder, given: Any
) -> None:
    for value in (given, [given], [data_url(6), given]):
        answer = client.post(ROUTE, json={"input": value})
        assert answer.status_code == 200, answer.text
        vector = answer.json()["data"][-1]["embedding"]
        np.testing.assert_allclose(vector, embedder.embed([drawn(5)])[0], atol=1e-6)


def test_what_infinity_and_jina_clients_send_is_accepted(
    client: TestClient, embedder: Embedder
) -> None:
    model = model_of(embedder)
    infinity = {"model": model, "input": [data_url(1)], "modality": "image", "user": "u"}
    jina: dict[str, Any] = {"model": model, "input": [{"image": encoded(1)}]}
    jina |= {"embedding_type": "base64", "normalized": True, "dimensions": embedder.width}
    assert client.post(ROUTE, json=infinity).status_code == 200
    assert isinstance(client.post(ROUTE, json=jina).json()["data"][0]["embedding"], str)
    # null means that the field is absent, and .NET escapes the plus sign
    empty = {"model": None, "dimensions": None, "encoding_format": None, "modality": None}
    body = json.dumps({**empty, "input": data_url(1)}).replace("+", "\\u002b").replace("/", "\\/")
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post(ROUTE, content=body, headers=headers).status_code == 200


ONLY_IMAGES = "embeds images only"
URL = "an address, which the service never opens"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": "a cat"}, "input", f"input[0] is text, and this model {ONLY_IMAGES}"),
        ({"input": [data_url(1), "a cat"]}, "input", "input[1] is text"),
        ({"input": encoded(1)}, "input", "input[0] is text"),
        ({"input": {"text": "a cat"}}, "input", ONLY_IMAGES),
        ({"input": [[1, 2, 3]]}, "input", "tokens of text"),
        ({"input": [1, 2, 3]}, "input", "tokens of text"),
        ({"input": [None]}, "input", "input[0] is not an image"),
        ({"input": {"image": ["x"]}}, "input", "tokens of text"),
        ({"input": {"image_url": {"path": "/etc/passwd"}}}, "input", "input[0] is not an image"),
        ({"input": {"image": encoded(1), "text": "a cat"}}, "input", "an object with text"),
        ({"input": {"image": "/etc/passwd"}}, "input", "not valid base64"),
        ({"input": "http://127.0.0.1/a.png"}, "input", URL),
        ({"input": "HTTPS://127.0.0.1/a.png"}, "input", URL),
        ({"input": {"image": "file:///etc/passwd"}}, "input", URL),
        ({"input": {"image_url": {"url": "s3://bucket/a.png"}}}, "input", URL),
        ({"input": "data:image/png,abc"}, "input", "without `;base64,`"),
        ({"input": "data:image/svg+xml;utf8,<svg/>"}, "input", "without `;base64,`"),
        ({"input": "data:"}, "input", "without `;base64,`"),
        ({"input": f"data:image/png;{'x' * 300};base64,AAAA"}, "input", "without `;base64,`"),
        ({"input": f"data:text/html;base64,{encoded(1)}"}, "input", "of 'text/html'"),
        ({"input": f"data:;base64,{encoded(1)}"}, "input", "of 'text'"),
        ({"input": "data:image/png;base64,AAA"}, "input", "not valid base64"),
        ({"input": "data:image/png;base64,AA%2B"}, "input", "not valid base64"),
        ({"input": "data:image/png;base64,ÄÄÄÄ"}, "input", "not valid base64"),
        ({"input": "data:image/png;base64,"}, "input", "input[0]"),
        ({"input": "data:image/png;base64,AAAA"}, "input", "input[0] is not an image"),
        ({"input": [data_url(1), "data:image/png;base64,AAAA"]}, "input", "input[1] is not"),
        ({"input": f"data:image/png;base64,{'A' * 90_000}"}, "input", "67,500 bytes"),
        ({"input": []}, "input", "missing or empty"),
        ({"input": None}, "input", "missing or empty"),
        ({}, "input", "missing or empty"),
        ({"input": [data_url(1)] * 5}, "input", "5 values, more than the limit of 4"),
        ({"input": data_url(1), "dimensions": 16}, "dimensions", "vectors have 32"),
        ({"input": data_url(1), "dimensions": True}, "dimensions", "vectors have 32"),
        ({"input": data_url(1), "dimensions": "32"}, "dimensions", "vectors have 32"),
        ({"input": data_url(1), "encoding_format": "int8"}, "encoding_format", "'int8'"),
        ({"input": data_url(1), "encoding_format": ["float"]}, "encoding_format", "a list"),
        ({"input": data_url(1), "embedding_type": "binary"}, "encoding_format", "'binary'"),
        ({"input": data_url(1), "modality": "text"}, "modality", "images only"),
    ],
)
def test_what_is_not_an_image_is_refused(
    client: TestClient, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post(ROUTE, json=fields)
    assert answer.status_code == 400
    error = OpenAIRefusal.model_validate(answer.json(), strict=True).error
    assert words in error.message
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, None)


def test_another_model_is_not_served(official: openai.OpenAI, embedder: Embedder) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        official.embeddings.create(model="text-embedding-3-small", input=data_url(1))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert model_of(embedder) in str(caught.value)
    by_fingerprint = official.embeddings.create(model=embedder.fingerprint, input=data_url(1))
    assert by_fingerprint.model == model_of(embedder)


def test_the_official_client_names_a_wrong_input(
    official: openai.OpenAI, embedder: Embedder
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        official.embeddings.create(model=model_of(embedder), input=["a cat"])
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", "input")
    assert ONLY_IMAGES in str(caught.value)


BODY = '{"input": "a cat"}'
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "content", "headers", "status"),
    [
        ("GET", b"", {}, 405),
        ("POST", BODY, {"Content-Type": "text/plain"}, 415),
        ("POST", BODY, {}, 415),
        ("POST", b"x" * 200_000, JSON, 413),
        ("POST", iter([b"x" * 100_000, b"x" * 100_000]), JSON, 413),
        ("POST", BODY, {**JSON, "X-Request-Deadline-Ms": "soon"}, 400),
        ("POST", b"", JSON, 400),
        ("POST", BODY[:10], JSON, 400),
        ("POST", b"\xff\xfe", JSON, 400),
        ("POST", "[" * 9_000, JSON, 400),
        ("POST", f"[{'[],' * 20_000}[]]", JSON, 400),
        ("POST", f'{{"input": "a", "{"k" * 9}": {"9" * 9_000}}}', JSON, 400),
        ("POST", "[]", JSON, 400),
        ("POST", '"a cat"', JSON, 400),
        ("POST", "NaN", JSON, 400),
    ],
)
def test_every_refusal_has_openais_shape(
    client: TestClient, method: str, content: Any, headers: dict[str, str], status: int
) -> None:
    answer = client.request(method, ROUTE, content=content, headers=headers)
    assert answer.status_code == status
    error = OpenAIRefusal.model_validate(answer.json(), strict=True).error
    assert error.message
    assert error.type == "invalid_request_error"


def test_failures_of_the_service_have_openais_shape(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("/secret")

    monkeypatch.setattr(Service, "embed", fail)
    client = TestClient(make_app(None, embedder), raise_server_exceptions=False)
    answer = client.post(ROUTE, json={"input": data_url(1)})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


def test_the_official_client_understands_keys_and_rates(embedder: Embedder, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    token = create_key(file, "reader", scopes=("read",), image_rate=Rate(per_second=1, burst=3))
    writer = create_key(file, "writer", scopes=("write",))
    with serving(make_app(None, embedder, limits=LIMITS, keyring=Keyring(file))) as address:

        def embed(key: str, *seeds: int) -> int:
            with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
                model = model_of(embedder)
                inputs = [data_url(seed) for seed in seeds]
                return len(client.embeddings.create(model=model, input=inputs).data)

        with pytest.raises(openai.AuthenticationError) as unknown:
            embed("unknown", 1)
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError):
            embed(writer, 1)
        assert embed(token, 1, 2, 3) == 3
        with pytest.raises(openai.RateLimitError) as limited:
            embed(token, 1, 2, 3)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) >= 1


@given(st.data())
def test_no_json_breaks_the_reading(service: Service, data: st.DataObject) -> None:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    leaves |= st.sampled_from([data_url(1), "data:image/png;base64,", "http://x", encoded(1)])
    names = st.sampled_from(["image", "image_url", "url", "text", "type"]) | st.text(max_size=5)
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    )
    fields = {"input": data.draw(values)} | data.draw(
        st.dictionaries(
            st.sampled_from(["model", "dimensions", "encoding_format", "modality", "user"]),
            leaves,
            max_size=2,
        )
    )
    try:
        inputs = read_inputs([json.dumps(fields).encode()], service)
    except WrongRequest as error:
        refused = error
    else:
        assert inputs.uploads
        assert all(isinstance(upload, Upload) for upload in inputs.uploads)
        return
    assert str(refused).endswith(".")
    assert len(str(refused)) < 500


@pytest.fixture(scope="module")
def service(embedder: Embedder) -> Service:
    return Service(None, embedder, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": [' + b"[]," * 4_000_000 + b"0]}",
        b'{"input": [' + b"{}," * 4_000_000 + b"0]}",
        b'{"input": "' + b"A" * 12_000_000 + b'\\ud83d\\ude00"}',
        b'{"input": "' + b"A" * 12_000_000 + "😀".encode() + b'"}',
    ],
    ids=["lists", "objects", "escaped", "unicode"],
)
def test_small_json_does_not_become_large_in_memory(service: Service, body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WrongRequest, match=r"more values|must be ASCII"):
            read_inputs([body], service)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body) + 2**20  # nothing was parsed


def test_a_body_is_held_twice_at_most(service: Service) -> None:
    image = base64.b64encode(bytes(3_000_000)).decode("ascii")
    body = json.dumps({"input": [{"image": image}] * 4}).encode()
    pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    limits = replace(LIMITS, images=ImageLimits(max_bytes=2**22, max_pixels=40_000))
    tracemalloc.start()
    try:
        inputs = read_inputs(pieces, Service(None, service.embedder, limits))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(upload.data) for upload in inputs.uploads] == [3_000_000] * 4
    assert pieces == []
    # the pieces, which were there before, are not counted
    assert peak < 2.1 * len(body)
