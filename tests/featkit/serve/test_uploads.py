"""Forms in all variants that standards allow and older clients send, and malformed ones."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.featkit.serve.conftest import png

NAMED = b'Content-Disposition: form-data; name="files"; filename="a.png"'
DATA = png(6)
END = b"\r\n--xx--\r\n"


def post(
    client: TestClient, content: bytes, media_type: str = "multipart/form-data; boundary=xx"
) -> Any:
    return client.post("/v1/search", content=content, headers={"content-type": media_type})


def form(*headers: bytes, data: bytes = DATA, end: bytes = END) -> bytes:
    return b"--xx\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + data + end


def name_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["images"]
    assert found["hits"][0]["key"] == "blocks/6.png"
    return str(found["name"])


@pytest.mark.parametrize(
    "media_type",
    [
        "multipart/form-data; boundary=xx",
        "Multipart/Form-Data; boundary=xx",
        "MULTIPART/FORM-DATA;BOUNDARY=xx",
        'multipart/form-data; charset=utf-8; boundary="xx"',
        " multipart/form-data ; boundary=xx",
    ],
)
def test_a_media_type_is_read_in_any_case(client: TestClient, media_type: str) -> None:
    assert name_of(post(client, form(NAMED), media_type)) == "a.png"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'form-data; name="files"; filename="a.png"', "a.png"),
        (b"form-data; name=files; filename=a.png", "a.png"),
        (b'Form-Data; Name="files"; FileName="a.png"', "a.png"),
        (b"form-data; name=\"files\"; filename*=UTF-8''caf%C3%A9.png", "café.png"),
        (b"form-data; name=\"files\"; filename*=utf-8'en'%E7%8C%AB.png", "猫.png"),
        (b"form-data; name=\"files\"; filename*=iso-8859-1''caf%E9.png", "café.png"),
        (b"form-data; name=\"files\"; filename*=UTF-8''a%22b%5Cc.png", "c.png"),
        (b"form-data; name=\"files\"; filename*0*=UTF-8''caf%C3%A9; filename*1=.png", "café.png"),
        (b'form-data; name="files"; filename="a.png"; filename*=UTF-8\'\'b.png', "a.png"),
        ('form-data; name="files"; filename="café.png"'.encode(), "café.png"),
        (b'form-data; name="files"; filename="a%22b.png"', 'a"b.png'),
        (b'form-data; name="files"; filename="a\\"b.png"', 'a"b.png'),
        (b'form-data; name="files"; filename="a%0D%0Ab.png"', "a??b.png"),
        (b'form-data; name="files"; filename="100%25.png"', "100%25.png"),
        (b'form-data; name="files"; filename="C:\\photos\\a.png"', "a.png"),
        (b'form-data; name="files"; filename=""', "image 0"),
        (b'form-data; name="anything"; filename="a.png"', "a.png"),
    ],
)
def test_names_are_read_as_clients_write_them(
    client: TestClient, disposition: bytes, name: str
) -> None:
    assert name_of(post(client, form(b"Content-Disposition: " + disposition))) == name


@pytest.mark.parametrize("kind", [b"image/png", b"application/octet-stream", b"IMAGE/PNG; x=y"])
def test_a_part_with_a_file_type_needs_no_name(client: TestClient, kind: bytes) -> None:
    content = form(b'Content-Disposition: form-data; name="files"', b"Content-Type: " + kind)
    assert name_of(post(client, content)) == "image 0"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        (b"base64", base64.encodebytes(DATA)),
        (b"BASE64", base64.b64encode(DATA)),
        (b"quoted-printable", binascii.b2a_qp(DATA, istext=False)),
        (b"binary", DATA),
        (b"8bit", DATA),
    ],
)
def test_a_part_may_be_encoded(client: TestClient, encoding: bytes, data: bytes) -> None:
    assert (
        name_of(post(client, form(NAMED, b"Content-Transfer-Encoding: " + encoding, data=data)))
        == "a.png"
    )


def test_a_wrong_transfer_encoding_is_refused(client: TestClient) -> None:
    answer = post(client, form(NAMED, b"Content-Transfer-Encoding: base64", data=b"A" * 5))
    assert (answer.status_code, answer.json()["detail"][:26]) == (422, "a.png is not valid base64,")


@pytest.mark.parametrize(
    "end", [END, b"\r\n--xx--", b"\r\n--xx--\r\nepilogue", b"\r\n--xx--  \r\n"]
)
def test_the_last_boundary_may_be_followed_by_something(client: TestClient, end: bytes) -> None:
    assert name_of(post(client, form(NAMED, end=end))) == "a.png"


@pytest.mark.parametrize("length", range(0, len(form(NAMED)) - 4, 53))
def test_a_truncated_form_is_refused(client: TestClient, length: int) -> None:
    answer = post(client, form(NAMED)[:length])
    assert answer.status_code == 422
    assert "cut short; send it again" in answer.json()["detail"]


def test_a_truncated_second_part_is_refused(client: TestClient) -> None:
    content = form(NAMED, end=b"\r\n") + form(NAMED)[:200]
    assert "cut short" in post(client, content).json()["detail"]


def test_an_empty_file_field_is_ignored(client: TestClient) -> None:
    empty = form(
        b'Content-Disposition: form-data; name="files"; filename=""', data=b"", end=b"\r\n"
    )
    assert post(client, empty + b"--xx--\r\n").json()["detail"].startswith("No image was sent")
    assert name_of(post(client, empty + form(NAMED))) == "a.png"


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (form(NAMED), "multipart/form-data"),
        (form(NAMED), "multipart/form-data; boundary="),
        (form(NAMED), "multipart/form-data; boundary=" + "x" * 5000),
        (form(NAMED), "multipart/form-data; boundary=yy"),
        (form(NAMED), "multipart/form-data; boundary=xx; charset=hex"),
        (form(NAMED), "multipart/form-data; boundary=xx; charset=nothing"),
        (form(b"Content-Disposition: form-data"), "multipart/form-data; boundary=xx"),
        (form(b"X: y"), "multipart/form-data; boundary=xx"),
        (form(b"no header"), "multipart/form-data; boundary=xx"),
        (
            form(b"Content-Disposition: form-data; name=\"files\"; filename*=none''%ff"),
            "multipart/form-data; boundary=xx",
        ),
        (b"\x00" * 1000, "multipart/form-data; boundary=xx"),
        (form(NAMED, data=b""), "multipart/form-data; boundary=xx"),
        (b"--xx--\r\n", "multipart/form-data; boundary=xx"),
        (b"", "multipart/form-data; boundary=xx"),
        (b"", ""),
        (form(NAMED), "multipart/mixed; boundary=xx"),
        (form(NAMED), "application/x-www-form-urlencoded"),
    ],
)
def test_malformed_forms_are_refused(client: TestClient, content: bytes, media_type: str) -> None:
    answer = post(client, content, media_type)
    if answer.status_code == 200:  # read anyway
        assert answer.json()["images"][0]["hits"][0]["key"] == "blocks/6.png"
        return
    assert answer.status_code in (415, 422)
    assert answer.json()["detail"].endswith(".")


@pytest.mark.parametrize("length", ["²", "٣".encode().decode("latin-1"), "-1", "1e9", "x"])
def test_an_invalid_content_length_is_ignored(client: TestClient, length: str) -> None:
    headers = [
        (b"content-type", b"multipart/form-data; boundary=xx"),
        (b"content-length", length.encode("latin-1")),
    ]
    answer = client.post("/v1/search", content=iter([form(NAMED)]), headers=headers)
    assert name_of(answer) == "a.png"
