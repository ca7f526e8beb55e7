"""A typed client of the service, for programs on any machine.

with Client("http://127.0.0.1:8000") as client:
    vectors = client.embed(["cat.jpg", "dog.jpg"])        # (2, D) float32
    (hits,) = client.search(["cat.jpg"], k=5)
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from PIL import Image
from pydantic import BaseModel, ValidationError

from featkit.errors import EnvironmentProblem, InputError
from featkit.filetypes import what_is
from featkit.images import ImageLike, is_single, load, name_of, printable, read_encoded
from featkit.index import Refinement
from featkit.serve.schemas import (
    EmbedAnswer,
    Health,
    Hit,
    ItemsAnswer,
    NeighborsAnswer,
    SearchAnswer,
)
from featkit.wording import counted

Answer = TypeVar("Answer", bound=BaseModel)
NO_REFINEMENT = Refinement()

# Statuses of the service's own refusals, which give the reason as {"detail": text}.
REFUSALS = frozenset((400, 404, 413, 415, 422))
# The meaning of these statuses if another server answers, and what to do.
OTHER_STATUSES = {
    401: ("a proxy asks for a login; sign in there, or use the service's own address"),
    403: "a proxy or firewall forbids access; use an address that this machine can reach",
    404: "there is no such route; check the address, and that `featkit serve` runs there",
    405: (
        "the route does not accept such a request; check the address, and that `featkit serve` runs"
        " there"
    ),
    407: "a proxy asks for a login; put it into the variable HTTPS_PROXY or HTTP_PROXY",
    408: "the request took too long to arrive; send fewer images at once, or try again",
    413: (
        "the request is too large for a proxy in front of the service; send fewer or smaller"
        " images, or raise its limit"
    ),
    429: "there are too many requests; wait before the next one",
    500: "the service failed; its log has the reason",
    502: "a proxy cannot reach the service; check that it runs, and try again",
    503: "the service cannot answer now; try again later",
    504: (
        "the service did not answer a proxy in time; send fewer images at once, or raise its limit"
    ),
}


class Client:
    """A client of one service. Thread-safe, as httpx's client is.

    InputError, with the service's own message, if the service refuses a request.
    EnvironmentProblem, with the HTTP status and what to do, if the service cannot be reached or
    something else answers at its address.
    """

    def __init__(
        self, address: str, *, timeout_s: float = 60.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.address = address
        if not isinstance(address, str) or not address.startswith(("http://", "https://")):
            raise InputError(
                f"The address is {address!r}; it must begin with http:// or https://, such as"
                " http://127.0.0.1:8000."
            )
        try:
            self._http = httpx.Client(base_url=address, timeout=timeout_s, transport=transport)
        # ValueError and ImportError come from a proxy named in the environment
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise InputError(f"{address} cannot be called: {error}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> Health:
        """Return what the service runs. EnvironmentProblem if it reports that it cannot answer."""
        return self._parsed(Health, self._call("GET", "/healthz"))

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """Return the unit vectors (n, D) float32 of one image or several.

        Takes what `Embedder.embed` takes. Files are read here and sent as bytes.
        """
        parts = _parts(images)
        response = self._call("POST", "/v1/embed", files=parts)
        answer = self._parsed(EmbedAnswer, response)
        self._check_count(len(parts), len(answer.images), response)
        if {len(image.vector) for image in answer.images} != {answer.width}:
            raise self._foreign(response, "vectors whose length is not the width it reports")
        return np.array([image.vector for image in answer.images], dtype=np.float32)

    def search(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
    ) -> list[list[Hit]]:
        """Return the k nearest items of the index for each image, nearest first.

        images: as for `embed`. where, refine: as for `Index.search`.
        """
        parts = _parts(images)
        form = {"k": str(_whole(k, "k")), **_filter(where), **_refining(refine)}
        response = self._call("POST", "/v1/search", files=parts, data=form)
        answer = self._parsed(SearchAnswer, response)
        self._check_count(len(parts), len(answer.images), response)
        return [image.hits for image in answer.images]

    def neighbors(
        self,
        item_id: int,
        *,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
    ) -> list[Hit]:
        """Return the k items nearest to an item, itself first if it matches the filter."""
        route = f"/v1/items/{_whole(item_id, 'The id')}/neighbors"
        parameters = {"k": _whole(k, "k"), **_filter(where), **_refining(refine)}
        return self._parsed(NeighborsAnswer, self._call("GET", route, params=parameters)).hits

    def items(self, offset: int = 0, limit: int = 100, *, where: str | None = None) -> ItemsAnswer:
        """Return items in the order they were added, and how many match the filter in all."""
        parameters = {
            "offset": _whole(offset, "offset"),
            "limit": _whole(limit, "limit"),
            **_filter(where),
        }
        return self._parsed(ItemsAnswer, self._call("GET", "/v1/items", params=parameters))

    def thumbnail(self, item_id: int) -> bytes:
        """Return the JPEG bytes of an item's thumbnail."""
        response = self._call("GET", f"/v1/items/{_whole(item_id, 'The id')}/thumbnail")
        if not response.content.startswith(b"\xff\xd8"):
            raise self._foreign(response, "something other than a JPEG")
        return response.content

    def _call(self, method: str, route: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, route, **arguments)
        except httpx.TimeoutException as error:
            raise EnvironmentProblem(
                f"{self.address} did not answer within {self._http.timeout.read} s"
                f" ({type(error).__name__}); send fewer images at once, or give the client a"
                " longer timeout_s."
            ) from error
        # RequestError: also an answer that is cut off or cannot be decompressed
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise EnvironmentProblem(
                f"{self.address} does not answer ({error}); check that `featkit serve` runs there."
            ) from error
        if response.is_success:
            return response
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> InputError | EnvironmentProblem:
        """Return the error for an answer that is not a success.

        It has the service's own message, or the meaning of a status that a proxy sent.
        """
        status = response.status_code
        detail = _detail(response)
        if detail is not None and status in REFUSALS:
            return InputError(detail)
        if response.is_redirect:
            target = response.headers.get("location", "another address")
            reason = (
                f"it redirects to {target[:200]}; use that address if it is the service's, or sign"
                " in there"
            )
        else:
            reason = OTHER_STATUSES.get(
                status, "`featkit serve` never sends this status; check the address and any proxy"
            )
        wait = response.headers.get("retry-after", "")
        wait = f" (it asks to wait {wait} s)" if wait.isascii() and wait.isdigit() else ""
        own = f" and says: {detail.rstrip('.')}" if detail else ""
        return EnvironmentProblem(f"{self.address} answered {status}{own}: {reason}{wait}.")

    def _parsed(self, kind: type[Answer], response: httpx.Response) -> Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise self._foreign(response, "something other than featkit's answer") from error

    def _check_count(self, sent: int, answered: int, response: httpx.Response) -> None:
        if sent != answered:
            raise self._foreign(
                response, f"results for {counted(answered, 'image')}, but {sent:,} were sent"
            )

    def _foreign(self, response: httpx.Response, what: str) -> EnvironmentProblem:
        """Return the error for a success that is not the service's."""
        kind = what_is(response.content[:4096])
        described = (
            kind.name
            if kind is not None
            else response.headers.get("content-type", "nothing")[:60] or "nothing"
        )
        return EnvironmentProblem(
            f"{self.address} answered {response.status_code} with {what} ({described},"
            f" {counted(len(response.content), 'byte')}). A proxy, a login page, another program or"
            " another version of featkit answers there; check the address."
        )


def _parts(images: ImageLike | Iterable[ImageLike]) -> list[tuple[str, tuple[str, bytes]]]:
    """Return one part of a form per image. InputError, naming the value, if it is not an image."""
    if isinstance(images, str) or is_single(images):
        listed: list[Any] = [images]
    elif isinstance(images, Mapping | set | frozenset) or not isinstance(images, Iterable):
        raise InputError(f"images is {type(images).__name__}; give an image or a list of images.")
    else:
        listed = list(images)
    if not listed:
        raise InputError("No images were given; give at least one.")
    return [("files", _part(image, index)) for index, image in enumerate(listed)]


def _part(image: Any, index: int) -> tuple[str, bytes]:
    name = printable(name_of(image) or f"image {index}")
    # PNG is lossless, so the vector stays the same
    if isinstance(image, np.ndarray | Image.Image):
        buffer = io.BytesIO()
        Image.fromarray(load(image, name=name).pixels).save(buffer, "PNG", compress_level=1)
        return name, buffer.getvalue()
    return name, read_encoded(image, name=name)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def _filter(where: str | None) -> dict[str, str]:
    """Return the field of a filter. InputError unless it is text."""
    if where is not None and not isinstance(where, str):
        raise InputError(f"where is {where!r}; a filter is text, such as \"label = 'cat'\".")
    return {} if where is None else {"where": where}


def _refining(refine: Refinement) -> dict[str, str]:
    """Return the fields of a refinement that change something."""
    return {
        field.name: str(getattr(refine, field.name))
        for field in fields(refine)
        if getattr(refine, field.name) != field.default
    }


def _detail(response: httpx.Response) -> str | None:
    """Return the message of featkit's refusal, or None for any other answer."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return None
    detail = answer.get("detail") if isinstance(answer, dict) else None
    if (
        isinstance(detail, str)
        and detail
        and (response.status_code != 404 or detail != "Not Found")
    ):
        return detail
    return f"{detail}"[:300] if isinstance(detail, list) and detail else None
