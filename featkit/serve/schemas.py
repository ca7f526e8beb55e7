"""The answers of the routes, as pydantic models with examples. client.py parses the same models."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from featkit import index
from featkit.index.meaning import Meaning
from featkit.index.records import in_json

# The path below which a proxy serves the request that is being answered; threads that work for it
# see the same.
ROOT_PATH: ContextVar[str] = ContextVar("ROOT_PATH", default="")
Value = bool | int | float | str  # of metadata; NaN and infinity are text
EXAMPLE_FINGERPRINT = "5f2c9a0e7b1d4c83a6f0e2d95b7c1a48d3e6f9027c5b8a1e4d7f0c3b6a9e2d15"
EXAMPLE_HIT: JsonDict = {
    "id": 17,
    "key": "objects/mug/mug-1-front.jpg",
    "score": 0.9312,
    "meaning": "copy",
    "width": 480,
    "height": 360,
    "metadata": {},
    "thumbnail": "/v1/items/17/thumbnail",
}


class Item(BaseModel):
    """An image of the index."""

    id: int
    key: str
    width: int | None
    height: int | None
    metadata: dict[str, Value]
    thumbnail: str = Field(description="The path of its thumbnail at the service's address.")

    @classmethod
    def of(cls, item: index.Item) -> Self:
        """Describe an item of the index."""
        return cls(**_fields(item))


class Hit(Item):
    """An image of the index, with its similarity to the query."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_HIT]})
    score: float = Field(description="Cosine similarity, 1 for the same image.")
    meaning: Meaning | None = Field(
        None,
        description="Whether the score is that of a copy, of something similar or unrelated, as"
        " `featkit calibrate` measured for this index; null if it did not.",
    )

    @classmethod
    def of(cls, hit: index.Hit) -> Self:  # type: ignore[override]
        """Describe a hit of a search."""
        return cls(score=hit.score, meaning=hit.meaning, **_fields(hit))


class EmbeddedImage(BaseModel):
    """An image that was sent, with its unit vector."""

    name: str
    height: int
    width: int
    vector: list[float]


class EmbedAnswer(BaseModel):
    """Vectors in the order of the images, and the model that made them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "featkit-tiny",
                    "fingerprint": EXAMPLE_FINGERPRINT,
                    "width": 3,
                    "images": [
                        {
                            "name": "cat.jpg",
                            "height": 360,
                            "width": 480,
                            "vector": [0.48, -0.6, 0.64],
                        }
                    ],
                }
            ]
        }
    )
    model: str
    fingerprint: str = Field(description="Vectors of different fingerprints must not be compared.")
    width: int
    images: list[EmbeddedImage]


class ImageHits(BaseModel):
    """The hits for one image, nearest first."""

    name: str
    height: int
    width: int
    hits: list[Hit]


class SearchAnswer(BaseModel):
    """Hits for each image, in the order they were sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fingerprint": EXAMPLE_FINGERPRINT,
                    "images": [
                        {"name": "cup.jpg", "height": 360, "width": 480, "hits": [EXAMPLE_HIT]}
                    ],
                }
            ]
        }
    )
    fingerprint: str
    images: list[ImageHits]


class NeighborsAnswer(BaseModel):
    """An item and the items nearest to it, itself first."""

    item: Item
    hits: list[Hit]


class ItemsAnswer(BaseModel):
    """Some items, and how many there are in all."""

    total: int
    items: list[Item]

    @classmethod
    def of(cls, total: int, items: Sequence[index.Item]) -> Self:
        """Describe items of the index."""
        return cls(total=total, items=[Item.of(item) for item in items])


class Life(BaseModel):
    """The state of the process."""

    status: str = Field(description="`starting` until the index and the model are open, then `ok`.")


class Health(BaseModel):
    """The state of the service, and what it runs."""

    status: str = Field(description="`ok`, or what fails. If not ok, the HTTP status is 503.")
    model: str
    fingerprint: str
    backend: str
    num_items: int | None = Field(
        description="Images in the index; null when the service only embeds."
    )
    detail: str = Field("", description="The failure, in one sentence.")


class RefusedImage(BaseModel):
    """An image that was refused, and why."""

    name: str
    reason: str


class Refusal(BaseModel):
    """The reason why a request was refused. `images` lists the bad images."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "detail": "notes.jpg is not an image in a format that can be read.",
                    "images": [
                        {
                            "name": "notes.jpg",
                            "reason": "notes.jpg is not an image in a format that can be read.",
                        }
                    ],
                }
            ]
        }
    )
    detail: str
    images: list[RefusedImage] = []


class _Fields(TypedDict):
    id: int
    key: str
    width: int | None
    height: int | None
    metadata: dict[str, Value]
    thumbnail: str


def _fields(record: index.Item | index.Hit) -> _Fields:
    """Return the fields that items and hits share."""
    return {
        "id": record.id,
        "key": record.key,
        "width": record.width,
        "height": record.height,
        "metadata": {name: in_json(value) for name, value in record.metadata.items()},
        "thumbnail": f"{ROOT_PATH.get()}/v1/items/{record.id}/thumbnail",
    }
