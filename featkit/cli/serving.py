"""Options of `featkit serve` on who may call the service, and on a proxy in front of it."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.errors import InputError
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.serve.keyring import Keyring
    from featkit.serve.proxy import Proxy


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KeyFlags:
    """Options on keys."""

    keys: Path | None = None
    """Answer only requests with an API key of this file, which `featkit keys create` writes.
    Needed to listen on an address that other machines reach."""

    without_keys: Annotated[bool, Parameter(negative=())] = False
    """Answer everybody, although other machines reach the address: a proxy or a firewall decides
    who may call the service."""

    open_metrics: Annotated[bool, Parameter(negative=())] = False
    """Answer /metrics without a key. The probes /livez, /readyz and /healthz never need one."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProxyFlags:
    """Options on a proxy in front of the service."""

    allow_host: Annotated[list[str] | None, Parameter(negative=())] = None
    """Also answer requests for this name in the Host header: photos.example, or *.example for all
    names below it, or * for every name. Can be repeated. On a loopback address, the default is this
    machine's own names, elsewhere every name."""

    forwarded_allow_ips: str | None = None
    """Trust X-Forwarded-For and X-Forwarded-Proto from these addresses or networks, separated by
    commas; * for all. The default is this machine, or the variable FORWARDED_ALLOW_IPS."""

    root_path: str = ""
    """The path below which a proxy serves the service, such as /photos, whether or not the proxy
    removes it before it passes a request on."""


def proxy_of(flags: ProxyFlags | None) -> Proxy:
    """Return the options as the library's Proxy. InputError for a wrong value."""
    from featkit.serve.proxy import Proxy

    flags = flags or ProxyFlags()
    trusted = flags.forwarded_allow_ips
    return Proxy(
        allow_hosts=tuple(flags.allow_host or ()),
        forwarded_allow_ips=(
            None if trusted is None else tuple(each.strip() for each in trusted.split(","))
        ),
        root_path=flags.root_path.rstrip("/"),
    )


def keyring_of(flags: KeyFlags, listener: socket.socket) -> Keyring | None:
    """Return the keys that the options name, or None to answer everybody.

    InputError if the options contradict each other, or if other machines reach the address and
    neither option says who may call the service.
    """
    from featkit.serve.keyring import Keyring

    if flags.keys is not None:
        if flags.without_keys:
            raise InputError("--keys and --without-keys exclude each other; leave one out.")
        return Keyring(flags.keys)
    if flags.open_metrics:
        raise InputError("--open-metrics needs --keys; without keys, /metrics is open anyway.")
    host = listener.getsockname()[0]
    if not flags.without_keys and not ipaddress.ip_address(host).is_loopback:
        raise InputError(
            f"Other machines reach {host}, and without keys everybody may use the service. Create a"
            " key with `featkit keys create NAME` and add --keys featkit-keys.json, or add"
            " --without-keys if a proxy or a firewall decides who may call it."
        )
    return None


def described(flags: KeyFlags, keyring: Keyring | None) -> str | None:
    """Return a line on the keys, or None without any."""
    if flags.keys is None or keyring is None:
        return None
    now = datetime.now(UTC)
    num_keys = sum(not key.has_expired(now) for key in keyring.listed())
    if num_keys == 0:
        return (
            f"{flags.keys} has no valid key, so every request is refused; create a key: featkit"
            f" keys create NAME --keys {typed(flags.keys)}"
        )
    return f"Requests need a key: {flags.keys} has {counted(num_keys, 'valid key')}"
