"""`featkit keys`: create, list and revoke the API keys of a service."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from featkit.cli.console import print_json, print_table, stdout
from featkit.cli.options import AsJson
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import typed

if TYPE_CHECKING:
    from featkit.serve.keys import ApiKey
    from featkit.serve.rates import Rate

DEFAULT_FILE = Path("featkit-keys.json")
BURST_S = 10  # seconds of a rate that may come at once, unless a burst is given

Keys = Annotated[
    Path,
    Parameter(
        help="The file of API keys, which `featkit serve` also takes. A running service follows its"
        " changes at once.",
    ),
]

app = App(name="keys", help="Create, list and revoke the API keys of a service.")


@app.command
def create(
    name: str,
    /,
    *,
    keys: Keys = DEFAULT_FILE,
    scope: Annotated[list[Literal["read", "write", "admin"]] | None, Parameter(negative=())] = None,
    expires: datetime | None = None,
    images_per_second: float | None = None,
    image_burst: float | None = None,
    bytes_per_second: float | None = None,
    byte_burst: float | None = None,
    json_: AsJson = False,
) -> None:
    """Create an API key called NAME and print it. It cannot be shown again.

    The file has only a salted hash of it.

    Example: featkit keys create website --scope read --images-per-second 20

    Parameters
    ----------
    name
        A name for the key, such as that of the program that will use it.
    scope
        What the key may do: read (embed, search, look), write (add and remove images) or admin
        (swap models and indexes). Can be repeated; no scope includes another. The default is read.
    expires
        Refuse the key from this date or time on, in UTC: 2030-12-31 or 2030-12-31T18:00:00.
    images_per_second
        Images that the key may send per second, on average. By default, there is no limit.
    image_burst
        How many images may come at once. The default is those of 10 seconds.
    bytes_per_second
        Bytes that the key may send per second, on average. By default, there is no limit.
    byte_burst
        How many bytes may come at once. The default is those of 10 seconds.
    """
    need_extra("serve", "pydantic")
    from featkit.serve.keys import create_key

    if expires is not None:
        expires = expires.astimezone(UTC) if expires.tzinfo else expires.replace(tzinfo=UTC)
    token = create_key(
        keys,
        name,
        scopes=scope or ("read",),
        expires=expires,
        image_rate=_rate("image", images_per_second, image_burst),
        byte_rate=_rate("byte", bytes_per_second, byte_burst),
    )
    if json_:
        print_json({"name": name, "key": token, "file": str(keys)})
        return
    print(token)
    print(
        f"Keep this key; {keys} has only its hash. Serve with: featkit serve INDEX --keys"
        f" {typed(keys)}",
        file=sys.stderr,
    )


@app.command(name="list")
def list_(*, keys: Keys = DEFAULT_FILE, json_: AsJson = False) -> None:
    """Print the API keys of a file, without their secrets.

    Example: featkit keys list --keys featkit-keys.json
    """
    need_extra("serve", "pydantic")
    from featkit.serve.keys import read_keys

    now = datetime.now(UTC)
    listed = read_keys(keys)
    if json_:
        rows = [
            {
                **key.model_dump(mode="json", exclude={"salt", "hash"}),
                "expired": key.has_expired(now),
            }
            for key in listed
        ]
        print_json({"keys": rows})
        return
    if not listed:
        stdout().print(f"{keys} has no keys; create one with `featkit keys create NAME`.")
        return
    columns = ("name", "id", "scopes", "created", "expires", "images/s", "bytes/s")
    print_table(str(keys), columns, [_row(key, now) for key in listed])


@app.command
def revoke(name: str, /, *, keys: Keys = DEFAULT_FILE) -> None:
    """Revoke an API key by its name or id: a running service refuses it from the next request on.

    Example: featkit keys revoke website --keys featkit-keys.json

    Parameters
    ----------
    name
        The name or the id of the key, as `featkit keys list` prints them.
    """
    need_extra("serve", "pydantic")
    from featkit.serve.keys import revoke_key

    key = revoke_key(keys, name)
    stdout().print(f"Revoked {key.name} ({key.id}).")


def _row(key: ApiKey, now: datetime) -> tuple[str, ...]:
    expires = (
        "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}".removesuffix(" 00:00")
    )
    return (
        key.name,
        key.id,
        ", ".join(key.scopes),
        f"{key.created:%Y-%m-%d}",
        f"{expires} (expired)" if key.has_expired(now) else expires,
        _shown(key.image_rate),
        _shown(key.byte_rate),
    )


def _shown(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate.per_second:,g} (at once {rate.burst:,.0f})"


def _rate(unit: str, per_second: float | None, burst: float | None) -> Rate | None:
    """Return a limit, or None without one. InputError for one that lets nothing pass."""
    from featkit.serve.rates import Rate

    if per_second is None:
        if burst is not None:
            raise InputError(f"--{unit}-burst needs --{unit}s-per-second; add it.")
        return None
    if not 0 < per_second < float("inf"):
        raise InputError(f"--{unit}s-per-second is {per_second}; it must be a number above 0.")
    if burst is not None and not 1 <= burst < float("inf"):
        raise InputError(f"--{unit}-burst is {burst}; it must be a number from 1 on.")
    return Rate(per_second=per_second, burst=burst or max(1.0, per_second * BURST_S))
