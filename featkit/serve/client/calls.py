"""The calls of the service: each is a request, and how its answer is parsed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from featkit.errors import InputError
from featkit.index import Refinement
from featkit.serve.client.answers import Answer, Unexpected
from featkit.serve.client.parts import Part
from featkit.serve.schemas import (
    EmbedAnswer,
    Health,
    Hit,
    ItemsAnswer,
    NeighborsAnswer,
    SearchAnswer,
)
from featkit.wording import counted

Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)

NO_REFINEMENT = Refinement()
RAW, JSON = "application/octet-stream", "application/json"
FINGERPRINT_HEADER = "x-featkit-fingerprint"
LENGTH_TOLERANCE = 0.01  # of unit vectors; a model in half precision is within 0.001


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request.

    parse: raises Unexpected. arguments: of httpx's `request`. is_retried: False for a question
    about this moment.
    """

    method: str
    route: str
    parse: Callable[[Answer], Result]
    arguments: dict[str, Any] = field(default_factory=dict)
    is_retried: bool = True


@dataclass(frozen=True)
class OfModel(Generic[Result]):
    """A result of the service's model.

    fingerprint: the model's, None if the answer does not have it.
    """

    value: Result
    fingerprint: str | None


def health() -> Call[Health]:
    """Return the call of /healthz."""
    return Call("GET", "/healthz", lambda answer: _parsed(Health, answer), is_retried=False)


def embed(parts: Sequence[Part]) -> Call[OfModel[np.ndarray]]:
    """Return the call that embeds images: (n, D) float32.

    The answer may be raw float32, little-endian and row by row, if the service offers that.
    """
    arguments = {"files": _files(parts), "headers": {"Accept": f"{RAW}, {JSON};q=0.9"}}
    return Call("POST", "/v1/embed", lambda answer: _embedded(answer, len(parts)), arguments)


def search(
    parts: Sequence[Part], k: int, where: str | None, refine: Refinement
) -> Call[OfModel[list[list[Hit]]]]:
    """Return the call that searches with images."""
    form = {"k": str(whole(k, "k")), **_filter(where), **_refining(refine)}

    def parse(answer: Answer) -> OfModel[list[list[Hit]]]:
        parsed = _parsed(SearchAnswer, answer)
        _check_count(len(parts), len(parsed.images))
        hits = [_checked(image.hits, k) for image in parsed.images]
        return OfModel(hits, parsed.fingerprint)

    return Call("POST", "/v1/search", parse, {"files": _files(parts), "data": form})


def neighbors(item_id: int, k: int, where: str | None, refine: Refinement) -> Call[list[Hit]]:
    """Return the call that searches with an item of the index."""
    route = f"/v1/items/{whole(item_id, 'The id')}/neighbors"
    parameters = {"k": whole(k, "k"), **_filter(where), **_refining(refine)}
    return Call(
        "GET",
        route,
        lambda answer: _checked(_parsed(NeighborsAnswer, answer).hits, k),
        {"params": parameters},
    )


def items(offset: int, limit: int, where: str | None) -> Call[ItemsAnswer]:
    """Return the call that lists a page of items."""
    parameters = {
        "offset": whole(offset, "offset"),
        "limit": whole(limit, "limit"),
        **_filter(where),
    }

    def parse(answer: Answer) -> ItemsAnswer:
        page = _parsed(ItemsAnswer, answer)
        if len(page.items) > limit:
            raise Unexpected(f"{counted(len(page.items), 'item')} instead of at most {limit:,}")
        return page

    return Call("GET", "/v1/items", parse, {"params": parameters})


def thumbnail(item_id: int) -> Call[bytes]:
    """Return the call that fetches the thumbnail of an item as JPEG."""

    def parse(answer: Answer) -> bytes:
        if not answer.content.startswith(b"\xff\xd8"):
            raise Unexpected("something other than a JPEG")
        return answer.content

    return Call("GET", f"/v1/items/{whole(item_id, 'The id')}/thumbnail", parse)


def whole(value: Any, name: str) -> int:
    """Return a whole number. InputError if the value is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def _files(parts: Sequence[Part]) -> list[tuple[str, Part]]:
    return [("files", part) for part in parts]


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


def _parsed(kind: type[Model], answer: Answer) -> Model:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise Unexpected("something other than featkit's answer") from error


def _embedded(answer: Answer, num_images: int) -> OfModel[np.ndarray]:
    if answer.media_type == RAW:
        if not answer.content or len(answer.content) % (4 * num_images):
            raise Unexpected(f"a size that {counted(num_images, 'vector')} cannot have")
        vectors = np.frombuffer(answer.content, "<f4").reshape(num_images, -1).astype(np.float64)
        fingerprint = answer.headers.get(FINGERPRINT_HEADER)
    else:
        parsed = _parsed(EmbedAnswer, answer)
        _check_count(num_images, len(parsed.images))
        if {len(image.vector) for image in parsed.images} != {parsed.width}:
            raise Unexpected("vectors whose length is not the width it reports")
        vectors = np.array([image.vector for image in parsed.images])
        fingerprint = parsed.fingerprint
    # false also for NaN
    if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < LENGTH_TOLERANCE):
        raise Unexpected("vectors that are not of unit length")
    return OfModel(vectors.astype(np.float32), fingerprint)


def _checked(hits: list[Hit], k: int) -> list[Hit]:
    if len(hits) > k:
        raise Unexpected(f"{counted(len(hits), 'hit')} instead of at most {k:,}")
    if not all(math.isfinite(hit.score) for hit in hits):
        raise Unexpected("scores that are not numbers")
    return hits


def _check_count(sent: int, answered: int) -> None:
    if sent != answered:
        raise Unexpected(f"results for {counted(answered, 'image')}, but {sent:,} were sent")
