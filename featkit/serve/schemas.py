"""What the routes answer, as pydantic models with examples; client.py reads the same."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

EXAMPLE_FINGERPRINT = "5f2c9a0e7b1d4c83a6f0e2d95b7c1a48d3e6f9027c5b8a1e4d7f0c3b6a9e2d15"
EXAMPLE_HIT: JsonDict = {
    "id": 17,
    "key": "objects/mug/mug-1-front.jpg",
    "score": 0.9312,
    "width": 480,
    "height": 360,
    "metadata": {},
    "thumbnail": "/v1/items/17/thumbnail",
}


class Item(BaseModel):
    """A picture of the index."""

    id: int
    key: str
    width: int | None
    height: int | None
    metadata: dict[str, Any]
    thumbnail: str = Field(description="Where its thumbnail is, below the service's address.")


class Hit(Item):
    """A picture of the index and how near it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_HIT]})
    score: float = Field(description="Cosine similarity, 1 for the same picture.")


class EmbeddedPicture(BaseModel):
    """The unit vector of a picture that was sent."""

    name: str
    height: int
    width: int
    vector: list[float]


class EmbedAnswer(BaseModel):
    """Vectors, in the order of the pictures, and which model made them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "featkit-tiny",
                    "fingerprint": EXAMPLE_FINGERPRINT,
                    "width": 3,
                    "pictures": [
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
    pictures: list[EmbeddedPicture]


class PictureHits(BaseModel):
    """What was found for one picture, nearest first."""

    name: str
    height: int
    width: int
    hits: list[Hit]


class SearchAnswer(BaseModel):
    """Hits for each picture, in the order they were sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fingerprint": EXAMPLE_FINGERPRINT,
                    "pictures": [
                        {"name": "cup.jpg", "height": 360, "width": 480, "hits": [EXAMPLE_HIT]}
                    ],
                }
            ]
        }
    )
    fingerprint: str
    pictures: list[PictureHits]


class NeighborsAnswer(BaseModel):
    """An item and what is nearest to it, itself first."""

    item: Item
    hits: list[Hit]


class ItemsAnswer(BaseModel):
    """Some items, and how many there are."""

    total: int
    items: list[Item]


class Health(BaseModel):
    """Whether the service can answer, with what it runs."""

    status: str = Field(description="`ok`, or what fails; then the HTTP status is 503.")
    model: str
    fingerprint: str
    backend: str
    num_items: int | None = Field(
        description="Pictures in the index; null when the service only embeds."
    )
    detail: str = Field("", description="What fails, in one sentence.")


class Refusal(BaseModel):
    """Why a request was refused; `pictures` names each bad one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "detail": "notes.jpg is not a picture in a format that can be read.",
                    "pictures": [
                        {
                            "name": "notes.jpg",
                            "reason": "notes.jpg is not a picture in a format that can be read.",
                        }
                    ],
                }
            ]
        }
    )
    detail: str
    pictures: list[dict[str, str]] = []
