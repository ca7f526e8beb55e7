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
    """An image of the index."""

    id: int
    key: str
    width: int | None
    height: int | None
    metadata: dict[str, Any]
    thumbnail: str = Field(description="Where its thumbnail is, below the service's address.")


class Hit(Item):
    """An image of the index and how near it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_HIT]})
    score: float = Field(description="Cosine similarity, 1 for the same image.")


class EmbeddedImage(BaseModel):
    """The unit vector of an image that was sent."""

    name: str
    height: int
    width: int
    vector: list[float]


class EmbedAnswer(BaseModel):
    """Vectors, in the order of the images, and which model made them."""

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
    """What was found for one image, nearest first."""

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
        description="Images in the index; null when the service only embeds."
    )
    detail: str = Field("", description="What fails, in one sentence.")


class Refusal(BaseModel):
    """Why a request was refused; `images` names each bad one."""

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
    images: list[dict[str, str]] = []
