"""A proxy in front of the service: the names by which it is called, the addresses that it forwards,
and the path below which it is.

TLS ends in the proxy. Whether the service is called by http or https, and by whom, it learns from
X-Forwarded-Proto and X-Forwarded-For, if it trusts the sender.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit.errors import InputError
from featkit.serve.refusals import refusal
from featkit.serve.schemas import ROOT_PATH

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
# Health checks call a container by its address. The answers of these routes say nothing else.
ANY_HOST = frozenset(("/livez", "/readyz"))
EVERY = "*"
HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]", re.IGNORECASE)
ROOT = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*")
_HOST_PASSED = "featkit.host_passed"  # set in the scope of a request whose host is trusted


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Settings for a proxy in front of the service. InputError for a wrong value.

    allow_hosts: names that a Host header may have besides those of this machine: photos.example,
    *.example for all names below it, or * for every name.
    forwarded_allow_ips: addresses and networks whose X-Forwarded headers are trusted, or * for all;
    None trusts this machine, or the variable FORWARDED_ALLOW_IPS.
    root_path: the path below which the proxy serves the service, such as /photos, whether or not it
    removes the path before it passes a request on.
    """

    allow_hosts: tuple[str, ...] = ()
    forwarded_allow_ips: tuple[str, ...] | None = None
    root_path: str = ""

    def __post_init__(self) -> None:
        for host in self.allow_hosts:
            if host != EVERY and HOST_NAME.fullmatch(host) is None:
                raise InputError(
                    f"--allow-host is {host!r}; it must be a name in ASCII without scheme, port and"
                    " path, such as photos.example, *.example or *."
                )
        for address in self.forwarded_allow_ips or ():
            try:
                if address != EVERY:
                    ipaddress.ip_network(address)
            except ValueError as error:
                raise InputError(
                    f"--forwarded-allow-ips has {address!r} ({error}); it must have addresses such"
                    " as 10.0.0.5, networks such as 10.0.0.0/8, or *."
                ) from error
        if ROOT.fullmatch(self.root_path) is None:
            raise InputError(
                f"--root-path is {self.root_path!r}; it must be a path such as /photos, without a"
                " slash at its end."
            )
        if f"{self.root_path}/".startswith("/v1/"):  # /v1/items would then mean two things
            raise InputError(
                f"--root-path is {self.root_path!r}, and the service's own routes begin with /v1;"
                " choose another path."
            )


def guard_hosts(
    app: ASGIApp, listener: socket.socket, allow_hosts: tuple[str, ...] = ()
) -> ASGIApp:
    """Return the ASGI app, guarded against DNS rebinding if it listens on a loopback address.

    The guard answers 400 unless the Host header is a name of this machine or one of `allow_hosts`.
    Without it, a web page could point its own domain at 127.0.0.1 and read the service from the
    visitor's browser. On other addresses, every name is accepted unless `allow_hosts` names some.
    """
    host = listener.getsockname()[0]
    if not ipaddress.ip_address(host).is_loopback and not allow_hosts:
        return app
    return _HostGuard(app, [*LOOPBACK_HOSTS, in_url(host), *allow_hosts])


def in_url(host: str) -> str:
    """Return a host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


class _HostGuard:
    """Starlette's TrustedHostMiddleware, whose refusal has the service's own shape."""

    def __init__(self, app: ASGIApp, allowed_hosts: list[str]) -> None:
        self.app = app
        self._trusted = TrustedHostMiddleware(
            self._pass, allowed_hosts=allowed_hosts, www_redirect=False
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) in ANY_HOST:
            await self.app(scope, receive, send)
            return

        async def send_if_passed(message: Message) -> None:
            if _HOST_PASSED in scope:
                await send(message)

        await self._trusted(scope, receive, send_if_passed)
        if _HOST_PASSED not in scope:
            answer = refusal(
                400,
                "The Host header is not a name of this machine; use the address that"
                " `featkit serve` printed, or allow the name with its option --allow-host.",
            )
            await answer(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_HOST_PASSED] = True
        await self.app(scope, receive, send)


class BelowPath:
    """ASGI middleware for a service below a path of a proxy.

    It takes both kinds of requests: with the path, and without it, as most proxies pass them on and
    as health checks come. Afterwards, the scope is as ASGI wants it: `path` begins with
    `root_path`.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path, root = scope["path"], self.root_path
        below = {**scope, "root_path": root}
        if path != root and not path.startswith(f"{root}/"):
            below["path"] = root + path
            below["raw_path"] = root.encode() + scope.get("raw_path", path.encode())
        await self.app(below, receive, send)


class NotesRootPath:
    """ASGI middleware with which the paths in answers begin with the request's root path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = ROOT_PATH.set(scope.get("root_path", "").rstrip("/"))
        try:
            await self.app(scope, receive, send)
        finally:
            ROOT_PATH.reset(token)


def route_path(scope: Scope) -> str:
    """Return the path of a request as the routes see it, without the root path."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    below = path.removeprefix(root)
    return below if path.startswith(root) and below.startswith("/") else path
