"""A typed client of the service, for programs elsewhere.

with Client("http://127.0.0.1:8000") as client:
    vectors = client.embed(["cat.jpg", "dog.jpg"])        # (2, D) float32
    (hits,) = client.search(["cat.jpg"], k=5)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from featkit.errors import EnvironmentProblem, InputError
from featkit.images import read_file
from featkit.serve.schemas import EmbedAnswer, Health, Hit, NeighboursAnswer, SearchAnswer

SentPicture = str | Path | bytes


class Client:
    """Calls of one service. Thread-safe, as httpx's client is.

    InputError where the service refuses a picture, with its sentence; EnvironmentProblem where it cannot be reached.
    """

    def __init__(self, address: str, *, timeout_s: float = 60.0, transport: httpx.BaseTransport | None = None) -> None:
        self.address = address
        self._http = httpx.Client(base_url=address, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> Health:
        """What the service runs."""
        return Health.model_validate(self._call("GET", "/healthz").json())

    def embed(self, pictures: Sequence[SentPicture]) -> np.ndarray:
        """Unit vectors (n, D) float32 of paths or bytes, read here and sent as bytes."""
        answer = EmbedAnswer.model_validate(self._call("POST", "/v1/embed", files=_parts(pictures)).json())
        return np.array([one.vector for one in answer.pictures], dtype=np.float32)

    def search(self, pictures: Sequence[SentPicture], *, k: int = 10) -> list[list[Hit]]:
        """The k nearest items of the index for each picture, nearest first."""
        response = self._call("POST", "/v1/search", files=_parts(pictures), data={"k": str(k)})
        return [one.hits for one in SearchAnswer.model_validate(response.json()).pictures]

    def neighbours(self, number: int, *, k: int = 10) -> list[Hit]:
        """The k items nearest to item `number`, itself first."""
        response = self._call("GET", f"/v1/items/{number}/neighbours", params={"k": k})
        return NeighboursAnswer.model_validate(response.json()).hits

    def thumbnail(self, number: int) -> bytes:
        """JPEG bytes of item `number`."""
        return self._call("GET", f"/v1/items/{number}/thumbnail").content

    def _call(self, method: str, route: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, route, **arguments)
        except httpx.TransportError as error:
            raise EnvironmentProblem(f"{self.address} does not answer ({error}); is `featkit serve` running there?") from error
        if response.is_success:
            return response
        reason = _reason(response)
        if response.status_code >= 500:
            raise EnvironmentProblem(f"{self.address} answered {response.status_code}: {reason}")
        raise InputError(reason)


def _parts(pictures: Sequence[SentPicture]) -> list[tuple[str, tuple[str, bytes]]]:
    if not pictures:
        raise InputError("No picture was given to send.")
    named = [
        (f"picture {number}", picture) if isinstance(picture, bytes) else (str(picture), read_file(Path(picture)))
        for number, picture in enumerate(pictures)
    ]
    return [("files", part) for part in named]


def _reason(response: httpx.Response) -> str:
    """The sentence of a refusal, or the answer's first words where something else answered."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200]
    return detail if isinstance(detail, str) else f"The service refused the request: {detail}"
