"""Pictures out of a multipart request, counted while they stream in.

Starlette keeps small files in memory and spools larger ones to disk; the count here ends a request that goes on too long,
whatever its headers claimed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from featkit.errors import FeatkitError
from featkit.serve.service import ServiceLimits, Upload

MAX_NAME_LENGTH = 200


class BadRequest(FeatkitError):
    """A request that is wrong as a whole; `status` is the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


@dataclass(frozen=True)
class Form:
    """The pictures of a request, in order, and its other fields."""

    uploads: list[Upload]
    fields: dict[str, str]


async def read_form(request: Request, limits: ServiceLimits) -> Form:
    """The request's pictures and fields.

    BadRequest 413 past the byte limit, 415 for another content type, 422 without a picture or with too many.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise BadRequest(415, "Send pictures as multipart/form-data, each in a part named `files`.")
    parser = MultiPartParser(
        request.headers, _counted(request, limits.max_request_bytes), max_files=limits.max_pictures, max_fields=16
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(422, f"The form cannot be read: {error.message}") from error
    uploads: list[Upload] = []
    fields: dict[str, str] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                # One byte past the limit is enough for the decoder to say by how much; the rest is never read.
                data = await value.read(limits.images.max_bytes + 1)
                uploads.append(Upload(_short(value.filename or f"picture {len(uploads)}"), data))
            else:
                fields[name] = value
    finally:
        await form.close()
    if not uploads:
        raise BadRequest(422, "No picture was sent; put at least one in a part named `files`.")
    return Form(uploads, fields)


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces; BadRequest as soon as there are more than `max_bytes`."""
    claimed = request.headers.get("content-length", "")
    if claimed.isdigit() and int(claimed) > max_bytes:
        raise BadRequest(413, f"The request has {int(claimed):,} bytes, more than the limit of {max_bytes:,}.")
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > max_bytes:
            raise BadRequest(413, f"The request has more bytes than the limit of {max_bytes:,}.")
        yield piece


def _short(name: str) -> str:
    """The last part of the name a sender gave, printable and of bounded length; only ever shown, never opened."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(character if character.isprintable() else "?" for character in last)
    return printable[:MAX_NAME_LENGTH] or "picture"
