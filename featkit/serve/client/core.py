"""The base of `Client` and `AsyncClient`: their options, and all that needs no connection."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Generic, TypeVar

import httpx
import numpy as np

from featkit._version import __version__
from featkit.errors import EnvironmentProblem, InputError
from featkit.images import ImageLike
from featkit.serve.client.attempts import Policy
from featkit.serve.client.calls import OfModel, whole
from featkit.serve.client.clock import Clock, Deadline
from featkit.serve.client.parts import Part, batches

Http = TypeVar("Http")
Transport = TypeVar("Transport")
Result = TypeVar("Result")

KEY_VARIABLE = "FEATKIT_API_KEY"
SYSTEM_CLOCK = Clock()


class Core(ABC, Generic[Http, Transport]):
    """The options of a client, documented at `Client`.

    Http, Transport: classes of httpx. transport, clock: for tests.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        deadline_s: float | None = None,
        max_attempts: int = 5,
        images_per_request: int = 64,
        bytes_per_request: int = 32 * 2**20,
        transport: Transport | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.address = address
        if not isinstance(address, str) or not address.startswith(("http://", "https://")):
            raise InputError(
                f"The address is {address!r}; it must begin with http:// or https://, such as"
                " http://127.0.0.1:8000."
            )
        self._policy = Policy(
            address,
            timeout_s=_seconds(timeout_s, "timeout_s"),
            max_attempts=at_least_one(max_attempts, "max_attempts"),
        )
        self._deadline_s = None if deadline_s is None else _seconds(deadline_s, "deadline_s")
        self._max_images = at_least_one(images_per_request, "images_per_request")
        self._max_bytes = at_least_one(bytes_per_request, "bytes_per_request")
        self._clock = clock
        headers = {"User-Agent": f"featkit/{__version__}", **_authorization(api_key)}
        options = {"base_url": address, "headers": headers, "cookies": _no_cookies()}
        try:
            self._http = self._open(transport, options)
        # ValueError and ImportError come from a proxy named in the environment
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise InputError(f"{address} cannot be called: {error}.") from error

    @abstractmethod
    def _open(self, transport: Transport | None, options: dict[str, Any]) -> Http:
        """Return httpx's client with these options."""

    def _deadline(self, deadline_s: float | None) -> Deadline:
        """Return the deadline of a call that begins now."""
        given_s = self._deadline_s if deadline_s is None else _seconds(deadline_s, "deadline_s")
        return Deadline.after(self._clock, given_s)

    def _batches(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[list[Part]]:
        return batches(images, max_images=self._max_images, max_bytes=self._max_bytes)

    def _values(self, answers: Sequence[OfModel[Result]]) -> list[Result]:
        """Return the values of several requests. EnvironmentProblem if their models differ."""
        # raw vectors may come without a fingerprint
        if len({answer.fingerprint for answer in answers} - {None}) > 1:
            raise self._other_model()
        return [answer.value for answer in answers]

    def _vectors(self, answers: Sequence[OfModel[np.ndarray]]) -> np.ndarray:
        """Return the vectors of several requests: (n, D) float32."""
        blocks = self._values(answers)
        if len({block.shape[1] for block in blocks}) > 1:
            raise self._other_model()
        return np.concatenate(blocks)

    def _other_model(self) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.address} has answered with different models, as happens when the service"
            " changes its model during a call; call again."
        )


def _authorization(api_key: str | None) -> dict[str, str]:
    """Return the header of a key. InputError, without the key, if no header can have it."""
    key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or " " in key:
        origin = KEY_VARIABLE if api_key is None else "api_key"
        raise InputError(
            f"{origin} is not a key: it must be text of visible ASCII characters, without spaces or"
            " line ends."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _seconds(value: Any, name: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}; it must be a number of seconds above 0.")
    return float(value)


def _no_cookies() -> CookieJar:
    """Return a jar that stays empty.

    The service sets no cookies, and a stranger's might be one that httpx cannot send back.
    """
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def at_least_one(value: Any, name: str) -> int:
    """Return a whole number from 1 on. InputError if the value is anything else."""
    if whole(value, name) < 1:
        raise InputError(f"{name} is {value!r}; it must be at least 1.")
    return int(value)
