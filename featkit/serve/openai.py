"""OpenAI's route for embeddings, `POST /v1/embeddings`, with images as inputs.

An input is a data URL, as Infinity takes it, or an object as Jina's and other APIs take it:

    "data:image/jpeg;base64,/9j/…"
    {"image": "/9j/…"}                            base64, or a data URL
    {"image_url": {"url": "data:image/…"}}        also {"image_url": "data:image/…"}

Web addresses are refused and never opened. Errors have OpenAI's shape, of openai_errors.py.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from featkit.errors import FeatkitError
from featkit.serve.admission import accepted_of
from featkit.serve.guard import charge_images
from featkit.serve.openai_errors import OPENAI_ROUTE, OpenAIRefusal, openai_refusal
from featkit.serve.refusals import BadImages
from featkit.serve.router import ServiceOf, in_thread
from featkit.serve.service import Service, Upload
from featkit.serve.uploads import counted_body
from featkit.wording import counted

MAX_OTHER_VALUES, MAX_VALUES_PER_IMAGE = 10_000, 16  # of a JSON body
# Python stores a text with one exotic character in four bytes per character.
MAX_UNICODE_BYTES = 2**20
EXOTIC_ESCAPE = re.compile(rb"\\u(?!00[0-7])")
DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*?)(;base64)?,", re.IGNORECASE)
MAX_HEADER = 200  # characters of a data URL before its data
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,19}:", re.IGNORECASE)
ADVICE = "send the image itself as a data URL, such as data:image/jpeg;base64,/9j/…"
FORMATS = ("float", "base64")

routes = APIRouter()


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of text, which images do not have."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the inputs, in OpenAI's shape."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.48, -0.6, 0.64]}],
                    "model": "featkit-tiny",
                    "usage": {"prompt_tokens": 0, "total_tokens": 0},
                }
            ]
        }
    )
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage = Usage()


class WrongRequest(FeatkitError):
    """A request that OpenAI's shape of refusal answers. param: the field that is wrong."""

    def __init__(
        self, reason: str, param: str | None = None, *, status: int = 400, code: str | None = None
    ) -> None:
        self.status, self.param, self.code = status, param, code
        super().__init__(reason)


@dataclass(frozen=True)
class Inputs:
    """A request that was read: its images, and whether vectors are wanted as base64."""

    uploads: list[Upload]
    as_base64: bool


def add_openai_route(app: FastAPI) -> None:
    """Add the route and its errors to an app that has the other routes."""
    app.include_router(routes)
    app.add_exception_handler(WrongRequest, _refuse)  # type: ignore[arg-type]


async def _refuse(_: Request, error: WrongRequest) -> JSONResponse:
    body = openai_refusal(error.status, str(error), param=error.param, code=error.code)
    return JSONResponse(body.model_dump(), status_code=error.status)


_TEXT: dict[str, Any] = {"type": "string"}
_OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {"image": _TEXT, "image_url": {"anyOf": [_TEXT, {"type": "object"}]}},
}
_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "anyOf": [_TEXT, _OBJECT, {"type": "array", "items": {"anyOf": [_TEXT, _OBJECT]}}],
            "description": "Images as data URLs, or as objects such as `{'image': BASE64}`.",
        },
        "model": {"type": "string", "description": "The served model's name, or nothing."},
        "encoding_format": {
            "type": "string",
            "enum": [*FORMATS],
            "default": "float",
            "description": "`base64`: little-endian float32.",
        },
        "dimensions": {"type": "integer", "description": "The model's own width, or nothing."},
    },
}


@routes.post(
    OPENAI_ROUTE,
    tags=["images"],
    responses={
        400: {"model": OpenAIRefusal, "description": "An image or a field cannot be used."},
        404: {"model": OpenAIRefusal, "description": "Another model is asked for."},
        413: {"model": OpenAIRefusal, "description": "More bytes than the service accepts."},
        415: {"model": OpenAIRefusal, "description": "The request is not application/json."},
        503: {"model": OpenAIRefusal, "description": "The service cannot answer now."},
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}
    },
)
async def create_embeddings(service: ServiceOf, request: Request) -> EmbeddingsAnswer:
    """Return the unit vector of each image, as OpenAI's API does for text."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise WrongRequest("The request must be application/json.", status=415)
    pieces = [piece async for piece in counted_body(request, service.max_request_bytes)]
    inputs = await in_thread(service, lambda: read_inputs(pieces, service))
    charge_images(request, len(inputs.uploads))
    accepted = accepted_of(request)
    try:
        embedded = await in_thread(
            service, lambda: service.embed(inputs.uploads, accepted=accepted)
        )
    except BadImages as error:
        raise WrongRequest(str(error), "input") from error
    return EmbeddingsAnswer(
        data=[
            Embedding(index=index, embedding=_encoded(image.vector, inputs.as_base64))
            for index, image in enumerate(embedded)
        ],
        model=service.embedder.manifest.name,
    )


def _encoded(vector: np.ndarray, as_base64: bool) -> list[float] | str:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    values: list[float] = vector.tolist()
    return values


def read_inputs(pieces: list[bytes], service: Service) -> Inputs:
    """Return the images of a JSON body. WrongRequest, naming what is wrong.

    Takes the pieces out of their list, so that no more than twice the body is in memory.
    """
    body = b"".join(pieces)
    pieces.clear()
    fields = _parsed(body, MAX_OTHER_VALUES + MAX_VALUES_PER_IMAGE * service.limits.max_images)
    del body
    _check_fields(fields, service)
    listed = fields.pop("input", None)
    inputs = listed if isinstance(listed, list) else [listed]
    if listed is None or not inputs:
        raise WrongRequest("input is missing or empty; give at least one image.", "input")
    if len(inputs) > service.limits.max_images:
        raise WrongRequest(
            f"input has {counted(len(inputs), 'value')}, more than the limit of"
            f" {service.limits.max_images:,}; send several requests.",
            "input",
        )
    uploads = [*_uploads(inputs, service.limits.images.max_bytes)]
    return Inputs(uploads, as_base64=_format(fields) == "base64")


def _parsed(body: bytes, max_values: int) -> dict[str, Any]:
    """Return the JSON object of a body, whose size in memory is bounded before it is parsed."""
    if sum(body.count(character) for character in (b",", b"[", b"{")) > max_values:
        raise WrongRequest("The request has more values than any list of images that is accepted.")
    is_exotic = not body.isascii() or EXOTIC_ESCAPE.search(body)
    if len(body) > MAX_UNICODE_BYTES and is_exotic:
        raise WrongRequest("A request of this size must be ASCII; base64 is.")
    try:
        fields = from_json(body)
    except ValueError as error:
        raise WrongRequest(f"The request is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise WrongRequest("The request must be a JSON object with `input`.")
    return fields


def _check_fields(fields: dict[str, Any], service: Service) -> None:
    """Refuse what would give other vectors than the caller expects."""
    manifest, width = service.embedder.manifest, service.embedder.width
    model = fields.get("model")
    if model is not None and model not in (manifest.name, service.embedder.fingerprint):
        raise WrongRequest(
            f"The model {_shown(model)} is not served here; the service has {manifest.name!r}.",
            "model",
            status=404,
            code="model_not_found",
        )
    dimensions = fields.get("dimensions")
    if dimensions is not None and (isinstance(dimensions, bool) or dimensions != width):
        raise WrongRequest(
            f"dimensions is {_shown(dimensions)}; this model's vectors have {width}.", "dimensions"
        )
    modality = fields.get("modality")
    if modality not in (None, "image"):
        raise WrongRequest(
            f"modality is {_shown(modality)}; this model embeds images only.", "modality"
        )
    if _format(fields) not in FORMATS:
        raise WrongRequest(
            f"encoding_format is {_shown(_format(fields))}; it must be 'float' or 'base64'.",
            "encoding_format",
        )


def _format(fields: dict[str, Any]) -> object:
    # Jina's name for it comes second
    return fields.get("encoding_format") or fields.get("embedding_type") or "float"


def _uploads(inputs: list[Any], max_bytes: int) -> Iterator[Upload]:
    """Yield the images of inputs, which are dropped one by one, to hold each image once."""
    for index in range(len(inputs)):
        value, inputs[index] = inputs[index], None
        name = f"input[{index}]"
        text = _encoded_image(value, name)
        num_bytes = len(text) * 3 // 4 - text[-2:].count("=")
        if num_bytes > max_bytes:
            yield Upload(name, b"", num_bytes)  # refused with the other bad images
            continue
        try:
            yield Upload(name, base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise WrongRequest(f"{name} is not valid base64; {ADVICE}.", "input") from error


def _encoded_image(value: Any, name: str) -> str:
    """Return the base64 of one input. WrongRequest if it is not an image."""
    is_object = isinstance(value, dict)
    if is_object:
        given = value.get("image", value.get("image_url"))
        if given is None or value.get("text") is not None:
            what = "without `image`" if given is None else "with text"
            raise WrongRequest(
                f"{name} is an object {what}; this model embeds images only: {ADVICE}.",
                "input",
            )
        value = given.get("url") if isinstance(given, dict) else given
    if isinstance(value, int | float | list):
        raise WrongRequest(
            f"{name} is a number or a list, such as tokens of text; this model embeds images only:"
            f" {ADVICE}.",
            "input",
        )
    if not isinstance(value, str):
        raise WrongRequest(f"{name} is not an image; {ADVICE}.", "input")
    if value[:5].lower() == "data:":
        return _data_of(value, name)
    if ADDRESS.match(value):
        raise WrongRequest(
            f"{name} is an address, which the service never opens; {ADVICE}.", "input"
        )
    if not is_object:
        raise WrongRequest(f"{name} is text, and this model embeds images only; {ADVICE}.", "input")
    return value


def _data_of(url: str, name: str) -> str:
    """Return the base64 of a data URL (RFC 2397)."""
    header = DATA_URL.match(url[:MAX_HEADER])
    if header is None or header[3] is None:
        raise WrongRequest(f"{name} is a data URL without `;base64,`; {ADVICE}.", "input")
    media_type = header[1].strip().lower()
    if not media_type.startswith("image/") and media_type != "application/octet-stream":
        raise WrongRequest(
            f"{name} is a data URL of {_shown(media_type or 'text')}, not of an image.", "input"
        )
    return url[header.end() :]


def _shown(value: object) -> str:
    """Show a value of a request in a message, or its type if it is not a single one."""
    if isinstance(value, str):
        return repr(value[:60])
    return repr(value)[:60] if isinstance(value, int | float) else f"a {type(value).__name__}"
