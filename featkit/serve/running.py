"""Running an app on an address of this machine, with a sentence where the address cannot be had."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit.errors import EnvironmentProblem, InputError

NUM_PORTS_TRIED = 100
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def bind(host: str, port: int) -> socket.socket:
    """A socket listening on the address; port 0 takes any free one.

    EnvironmentProblem, naming the next free port, when it is taken; InputError for a host that is
    none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; it must be from 0 to 65535.")
    try:
        return _bound(host, port)
    except socket.gaierror as error:
        raise InputError(
            f"--host {host} is no address that this machine knows; use 127.0.0.1 or 0.0.0.0."
        ) from error
    except PermissionError as error:
        raise EnvironmentProblem(
            f"Port {port} needs more rights than this user has; use one above 1023."
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentProblem(_taken(host, port)) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {host} is no address of this machine; use 127.0.0.1 or 0.0.0.0."
            ) from error
        raise


def _taken(host: str, port: int) -> str:
    for other in range(port + 1, min(port + NUM_PORTS_TRIED, 65535) + 1):
        try:
            _bound(host, other).close()
        except OSError:
            continue
        return (
            f"Port {port} is taken by another program; the next free one is {other}: add --port"
            f" {other}."
        )
    return f"Port {port} is taken by another program; choose another with --port."


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # Lets a restart have the port that its predecessor's closing connections still hold; not
        # one that is listened on.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{_in_url(shown)}:{port}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def guard_hosts(app: Any, listener: socket.socket) -> Any:
    """The ASGI app; on a loopback address it answers 400 to requests for any Host but this
    machine's own names.

    Otherwise a web page could let its domain lead to 127.0.0.1 and read the service as its own (DNS
    rebinding).
    """
    host = listener.getsockname()[0]
    if not ipaddress.ip_address(host).is_loopback:
        return app
    return TrustedHostMiddleware(
        app, allowed_hosts=[*LOOPBACK_HOSTS, _in_url(host)], www_redirect=False
    )


class _CutOff:
    """ASGI middleware: answers 503 to a request that the end of the server cuts off; uvicorn would
    print a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            if not started:
                answer = {
                    "detail": "The server is ending; send this request again later.",
                    "images": [],
                }
                await JSONResponse(answer, status_code=503, headers={"Connection": "close"})(
                    scope, receive, send
                )


class _Announced(uvicorn.Server):
    """A server that calls back once it answers."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def run(app: Any, listener: socket.socket, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serve an ASGI app on the socket until Ctrl-C or SIGTERM; `on_ready` is called when it
    answers.

    On a loopback address it answers under this machine's own names only.
    """
    config = uvicorn.Config(
        _CutOff(guard_hosts(app, listener)),
        log_level="warning",
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = _Announced(config, on_ready)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # how a server is meant to end; uvicorn has closed everything by now
        pass
    finally:
        listener.close()
