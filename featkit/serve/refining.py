"""The fields of a request that refine its hits, as `Refinement` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query

from featkit.errors import InputError
from featkit.index import Refinement
from featkit.index.refining import MOST_HITS
from featkit.serve.refusals import BadRequest

MIN_SCORE = "Leave out hits with a lower score."
EXPAND = "Search again with the query moved towards this many first hits, such as 3."
RERANK = (
    "Order this many first hits again by the neighbors that they share with the query, such as 100."
)
DIVERSITY = "From 0 to 1: with more, hits that are like earlier ones come later."

# OpenAPI's descriptions of the fields of a form.
FIELDS: dict[str, dict[str, Any]] = {
    "min_score": {"type": "number", "description": MIN_SCORE},
    "expand": {"type": "integer", "minimum": 0, "maximum": MOST_HITS, "description": EXPAND},
    "rerank": {"type": "integer", "minimum": 0, "maximum": MOST_HITS, "description": RERANK},
    "diversity": {"type": "number", "minimum": 0, "maximum": 1, "description": DIVERSITY},
}
MAX_LENGTH = 40  # of a number's text


def from_query(
    min_score: Annotated[float | None, Query(description=MIN_SCORE)] = None,
    expand: Annotated[int, Query(ge=0, le=MOST_HITS, description=EXPAND)] = 0,
    rerank: Annotated[int, Query(ge=0, le=MOST_HITS, description=RERANK)] = 0,
    diversity: Annotated[float, Query(ge=0, le=1, description=DIVERSITY)] = 0.0,
) -> Refinement:
    """Return the refinement that an address asks for. BadRequest for one that means nothing."""
    return _refinement(min_score=min_score, expand=expand, rerank=rerank, diversity=diversity)


def from_form(fields: Mapping[str, str]) -> Refinement:
    """Return the refinement that a form asks for; empty fields count as left out. BadRequest for
    one that means nothing.
    """
    numbers: dict[str, Any] = {}
    for name, schema in FIELDS.items():
        text = fields.get(name, "")
        if not text:
            continue
        try:
            if len(text) > MAX_LENGTH:
                raise ValueError
            numbers[name] = int(text) if schema["type"] == "integer" else float(text)
        except ValueError:
            kind = "whole number" if schema["type"] == "integer" else "number"
            raise BadRequest(
                422, f"{name} is {text[:MAX_LENGTH]!r}; it must be a {kind}."
            ) from None
    return _refinement(**numbers)


def _refinement(**values: Any) -> Refinement:
    try:
        return Refinement(**values)
    except InputError as error:
        raise BadRequest(422, str(error)) from error
