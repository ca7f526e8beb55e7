"""The file of API keys: who may call the service, for which routes, until when, and how often.

A key is `featkit_ID_SECRET`. ID, 8 hex digits, finds its entry in the file; SECRET is 256 random
bits in hex. The file has a salted BLAKE2b hash of the key. Slow hashes such as scrypt protect
passwords, because people choose ones that can be guessed. Nobody guesses 256 random bits, however
fast the hash is, and every request would pay for a slow one. The salt makes the hashes of two files
incomparable.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from featkit.atomic import OPEN_FLAGS, WINDOWS, explain_os_errors, replace_file
from featkit.errors import EnvironmentProblem, InputError
from featkit.folders import is_index
from featkit.lock import WriterLock
from featkit.serve.rates import Rate
from featkit.wording import typed

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_FILE_BYTES = 16 * 2**20  # tens of thousands of keys
TOKEN = re.compile(rb"featkit_(?P<id>[0-9a-f]{8})_[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# Compared if no key has the id, so that an unknown id takes the time of a known one.
NO_SALT, NO_HASH = bytes(16), bytes(32)


class ApiKey(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    id: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    image_rate: Rate | None = None  # in images
    byte_rate: Rate | None = None  # in bytes of the requests' bodies
    salt: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def has_expired(self, now: datetime) -> bool:
        """Return whether the key is no longer accepted at `now`, a time with a time zone."""
        return self.expires is not None and now >= self.expires


class KeyFile(BaseModel):
    """The content of a file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal[1] = 1
    keys: tuple[ApiKey, ...]

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for field in ("id", "name"):
            values = [getattr(key, field) for key in self.keys]
            if len({*values}) < len(values):
                raise ValueError(f"two keys have the same {field}")
        return self


def find(keys: Mapping[str, ApiKey], token: bytes) -> ApiKey | None:
    """Return the key that a token is, of keys by their id; None if it is not one of them.

    The hashes are compared in constant time, so the answer's time says nothing about a secret.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        return None
    key = keys.get(match["id"].decode())
    salt = NO_SALT if key is None else bytes.fromhex(key.salt)
    wanted = NO_HASH if key is None else bytes.fromhex(key.hash)
    is_same = hmac.compare_digest(_hash(token, salt), wanted)
    return key if is_same else None


def _hash(token: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(token, digest_size=32, salt=salt, person=b"featkit-api-key").digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file.

    InputError if it does not exist, is damaged or of a later version; EnvironmentProblem if it
    cannot be read. No message has a part of a hash.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise InputError(f"{path} is not a file; name a file of `featkit keys create`.")
        if status.st_nlink == 0:  # a file that is mounted into a container, replaced outside
            raise InputError(
                f"{path} was replaced, and this process still sees the old file, with keys that may"
                " be revoked; mount the folder of the file instead of the file."
            )
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; create a key: featkit keys create NAME --keys {typed(path)}."
        ) from error
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be read: {error.strerror}; let the user of this process read it."
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{path} has more than {MAX_FILE_BYTES:,} bytes, so it is not a file of API keys."
        )
    try:
        return KeyFile.model_validate_json(content).keys
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["loc"] == ("format",) and problem["type"] != "missing" for problem in problems):
        raise InputError(f"{path} was written by a later version of featkit; update featkit.")
    place = ".".join(str(step) for step in problems[0]["loc"]) or "its start"
    raise InputError(
        f"{path} is not a valid file of API keys ({place}: {problems[0]['msg']}); restore it,"
        " or remove it and create the keys again with `featkit keys create`."
    )


def create_key(
    path: Path,
    name: str,
    *,
    scopes: Iterable[Scope] = ("read",),
    expires: datetime | None = None,
    image_rate: Rate | None = None,
    byte_rate: Rate | None = None,
) -> str:
    """Add a key to a file, which is created if it does not exist, and return the key.

    The file has only its hash, so it cannot be shown again. InputError if a key has the name, or
    for a value that is not as required.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    wanted = {*scopes}
    _check_new(path, name, wanted, expires, now)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _changed(path) as keys:
        if any(key.name == name for key in keys):
            raise InputError(
                f"{path} has a key {name} already; revoke it first, or choose another name."
            )
        key_id = secrets.token_hex(4)
        while any(key.id == key_id for key in keys):
            key_id = secrets.token_hex(4)
        token, salt = f"featkit_{key_id}_{secrets.token_hex(32)}", secrets.token_bytes(16)
        keys.append(
            ApiKey(
                id=key_id,
                name=name,
                scopes=tuple(scope for scope in SCOPES if scope in wanted),
                created=now,
                expires=expires,
                image_rate=image_rate,
                byte_rate=byte_rate,
                salt=salt.hex(),
                hash=_hash(token.encode(), salt).hex(),
            )
        )
    return token


def _check_new(
    path: Path, name: str, scopes: set[Scope], expires: datetime | None, now: datetime
) -> None:
    """Raise InputError for a key that cannot be created."""
    if NAME.fullmatch(name) is None:
        raise InputError(
            f"{name!r} cannot be a key's name; use 1 to 64 letters, digits and . _ @ -, beginning"
            " with a letter or digit."
        )
    if expires is not None and expires <= now:
        raise InputError(f"{expires:%Y-%m-%d %H:%M} UTC is not in the future; name a later time.")
    if not scopes or not scopes <= {*SCOPES}:
        raise InputError(f"A key needs at least one scope of {', '.join(SCOPES)}.")
    if is_index(path.parent):
        raise InputError(
            f"{path} is inside an index, which may be replaced as a whole; keep keys elsewhere."
        )


def revoke_key(path: Path, name: str) -> ApiKey:
    """Remove a key, by its name or id, from a file, and return it. InputError without such a
    key."""
    read_keys(path)  # refuses a missing file before a lock is created next to it
    with _changed(path) as keys:
        # a name comes first, since it may look like another key's id
        key = next((key for key in keys if key.name == name), None) or next(
            (key for key in keys if key.id == name), None
        )
        if key is None:
            names = ", ".join(key.name for key in keys) or "no keys"
            raise InputError(f"{path} has no key {name}; it has {names}.")
        keys.remove(key)
    return key


@contextmanager
def _changed(path: Path) -> Iterator[list[ApiKey]]:
    """Yield the keys of a file as a list, and write the list back on success.

    One process changes a file at a time, so that no change is lost.
    """
    path = path.resolve()  # a link stays a link
    lock = WriterLock(path.with_name(f"{path.name}.lock"))
    try:
        keys = [*read_keys(path)] if path.exists() else []
        yield keys
        _write(path, KeyFile(keys=tuple(keys)))
    finally:
        lock.release()


def _write(path: Path, content: KeyFile) -> None:
    """Replace a file of keys. Only its owner may read it, and its group if that could before."""
    with replace_file(path) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            if path.exists() and not WINDOWS:
                # The service may run as another user than the one who changes its keys.
                before, now = path.stat(), os.fstat(file.fileno())
                if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), 0o600 | (before.st_mode & 0o040))
            file.write(content.model_dump_json(indent=2).encode() + b"\n")
