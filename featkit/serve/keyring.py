"""The keys of a running service, which follow their file without a restart."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featkit.errors import EnvironmentProblem, FeatkitError
from featkit.serve.keys import ApiKey, find, read_keys
from featkit.serve.rates import Rate, TokenBucket
from featkit.serve.refusals import log

# Longer than the steps of any file system's clock: a file that changed this recently may change
# again without another time of change.
SETTLED_AFTER_S = 2.5


@dataclass(frozen=True)
class HeldKey:
    """A key with its buckets; None without a limit."""

    key: ApiKey
    image_bucket: TokenBucket | None
    byte_bucket: TokenBucket | None


class KeysUnreadable(FeatkitError):
    """The file of keys is missing, damaged or cannot be read, so no key is accepted."""


class Keyring:
    """The keys of a file, which is read again whenever it has changed. Thread-safe.

    If the file cannot be used, no key is accepted until it can; the reason is logged once. What a
    bucket holds survives a change of the file, but not a restart of the service.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raises what `read_keys` raises."""
        self.path = path
        read_keys(path)
        self._lock = threading.Lock()
        self._signature: tuple[int, ...] | None = None  # of the file as it was read
        self._is_settled = False
        self._held: dict[str, HeldKey] = {}
        self._keys: Mapping[str, ApiKey] = {}
        self._problem: str | None = None

    def find(self, token: bytes) -> HeldKey | None:
        """Return the key that a token is, expired or not; None if it is not a key.

        KeysUnreadable if the file cannot be used.
        """
        with self._lock:
            self._follow()
            if self._problem is not None:
                raise KeysUnreadable("The service's keys cannot be read; its log has the reason.")
            key = find(self._keys, token)
            return None if key is None else self._held[key.id]

    def listed(self) -> tuple[ApiKey, ...]:
        """Return the keys of the file, as it is now or as it was when it could last be used."""
        with self._lock:
            self._follow()
            return tuple(self._keys.values())

    def _follow(self) -> None:
        """Read the file again if it has changed."""
        try:
            status = self.path.stat()
        except OSError:
            self._signature = None  # read_keys says why
        else:
            # before the file is read: a change in between shows at the next call
            signature = _signature(status)
            if signature == self._signature and self._is_settled:
                return
            self._signature = signature
            self._is_settled = time.time() - status.st_mtime > SETTLED_AFTER_S
        try:
            keys = read_keys(self.path)
        except FeatkitError as error:
            if isinstance(error, EnvironmentProblem):  # it may pass without a change of the file
                self._signature = None
            if self._problem != str(error):
                log.error("featkit: %s Until then, every request is refused.", error)
            self._problem = str(error)
            return
        if self._problem is not None:
            log.warning("featkit: %s can be used again", self.path)
        self._problem = None
        self._keys = {key.id: key for key in keys}
        self._held = {key.id: self._hold(key) for key in keys}

    def _hold(self, key: ApiKey) -> HeldKey:
        before = self._held.get(key.id)
        return HeldKey(
            key,
            _bucket(key.image_rate, None if before is None else before.image_bucket),
            _bucket(key.byte_rate, None if before is None else before.byte_bucket),
        )


def _bucket(rate: Rate | None, before: TokenBucket | None) -> TokenBucket | None:
    """Return a bucket for a rate; the one before, with what it holds, if the rate is the same."""
    if rate is None:
        return None
    return before if before is not None and before.rate == rate else TokenBucket(rate)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
