"""Images from a multipart request, whose bytes are counted while they stream in.

They stay in memory and never reach the disk. The count ends a request that is too long, whatever
its headers claim.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from email.message import Message

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from featkit.serve.guard import charge_images
from featkit.serve.refusals import BadRequest
from featkit.serve.service import ServiceLimits, Upload

MAX_NAME_LENGTH = 200
# Browsers escape these characters in a file's name, and no others (HTML standard,
# multipart/form-data encoding).
ESCAPED = (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"))


@dataclass(frozen=True)
class Form:
    """The images of a request, in order, and its other fields."""

    uploads: list[Upload]
    fields: dict[str, str]


async def read_form(request: Request, limits: ServiceLimits) -> Form:
    """Return the images and fields of a request.

    BadRequest 413 past the byte limit, 415 for another content type, and 422 for a malformed form,
    no image or too many images. Raises what `charge_images` raises.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise BadRequest(415, "Send images as multipart/form-data, each in a part named `files`.")
    parser = _Parser(
        request.headers,
        counted_body(request, limits.max_request_bytes),
        max_files=limits.max_images,
        max_fields=16,
    )
    parts = await _parse(parser)
    uploads: list[Upload] = []
    fields: dict[str, str] = {}
    try:
        for name, value in parts:
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif value.filename or value.size:  # else a browser's field without a chosen file
                name = _short(value.filename or f"image {len(uploads)}")
                uploads.append(await _read_upload(value, name, limits.images.max_bytes))
    finally:
        parser.close()
    if not uploads:
        raise BadRequest(422, "No image was sent; put at least one in a part named `files`.")
    charge_images(request, len(uploads))
    return Form(uploads, fields)


async def _parse(parser: _Parser) -> list[tuple[str, UploadFile | str]]:
    """Return the parts of a form by name. BadRequest unless it is complete and well-formed."""
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(422, f"The form cannot be read: {error.message}") from error
    except ClientDisconnect as error:
        raise BadRequest(
            400, "The client disconnected before it had sent the whole request."
        ) from error
    except (ValueError, LookupError) as error:  # an invalid boundary or character set
        raise BadRequest(422, "The form cannot be read: its content type is not valid.") from error
    if not parser.has_ended:
        parser.close()
        raise BadRequest(
            422, "The form ends before its last boundary: the request was cut short; send it again."
        )
    return form.multi_items()


async def _read_upload(file: UploadFile, name: str, max_bytes: int) -> Upload:
    # One byte past the limit is enough to refuse the image; the rest is never read.
    data = await file.read(max_bytes + 1)
    await file.close()
    # from older clients; RFC 7578 deprecates it
    encoding = file.headers.get("content-transfer-encoding", "").strip().lower()
    if encoding in ("base64", "quoted-printable"):
        return Upload(name, _decoded(data, encoding, name))
    return Upload(name, data, file.size)


class _Parser(MultiPartParser):
    """Starlette's parser, extended for older clients and for forms that are cut short."""

    has_ended = False  # whether the last boundary was seen
    spool_max_size = sys.maxsize  # larger files would be spooled to the disk

    def on_end(self) -> None:
        self.has_ended = True

    def close(self) -> None:
        """Free the files of all parts, including an incomplete one."""
        for file in self._files_to_close_on_error:
            file.close()

    def on_headers_finished(self) -> None:
        part = self._current_part
        disposition = bytes(part.content_disposition or b"")
        header = Message()
        header["Content-Disposition"] = (
            disposition.decode("latin-1").replace("\r", " ").replace("\n", " ")
        )
        if (
            header.get_param("filename", header="Content-Disposition") is not None
            and b"filename=" not in disposition.lower()
        ):
            # filename*= (RFC 5987), which RFC 7578 forbids here and urllib3 sent until 2.0
            part.content_disposition = disposition + _filename(header.get_filename("") or "")
        elif b"filename" not in disposition.lower():
            kind = dict(part.item_headers).get(b"content-type", b"text/plain").strip().lower()
            if not kind.startswith((b"text/", b"multipart/")):  # a file without a name
                part.content_disposition = disposition + _filename("")
        super().on_headers_finished()


def _filename(name: str) -> bytes:
    """Return the filename parameter of a Content-Disposition."""
    quoted = name.encode("utf-8", "replace").replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'; filename="' + quoted + b'"'


def _decoded(data: bytes, encoding: str, name: str) -> bytes:
    try:
        return (
            base64.b64decode(data, validate=False)
            if encoding == "base64"
            else quopri.decodestring(data)
        )
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            422, f"{name} is not valid {encoding}, which its part of the form declares."
        ) from error


async def counted_body(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body in pieces. BadRequest as soon as it exceeds `max_bytes`."""
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > max_bytes:
            raise BadRequest(413, f"The request has more bytes than the limit of {max_bytes:,}.")
        yield piece


def _short(name: str) -> str:
    """Return the last part of a sender's name for a file, printable and of bounded length.

    The name is only shown, never opened.
    """
    for escape, character in ESCAPED:
        name = name.replace(escape, character)
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(character if character.isprintable() else "?" for character in last)
    return printable[:MAX_NAME_LENGTH] or "image"
