"""Run an app at an address of this machine, and explain why an address is unavailable."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit.errors import EnvironmentProblem, InputError
from featkit.serve.patience import PatientProtocol
from featkit.serve.proxy import BelowPath, Proxy, guard_hosts, in_url
from featkit.serve.refusals import refusal

NUM_PORTS_TRIED = 100
NO_PROXY = Proxy()
INTERRUPT_S = 1


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address. Port 0 takes any free port.

    EnvironmentProblem, naming the next free port, if the port is taken; InputError if the host is
    not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}; it must be from 0 to 65535.")
    try:
        return _bound(host, port)
    except socket.gaierror as error:
        raise InputError(
            f"--host {host} is not an address that this machine can resolve; use 127.0.0.1 or"
            " 0.0.0.0."
        ) from error
    except PermissionError as error:
        raise EnvironmentProblem(
            f"This user may not listen on port {port}; use a port above 1023."
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentProblem(_taken(host, port)) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {host} is not an address of this machine; use 127.0.0.1 or 0.0.0.0."
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
        # A restart may take a port whose old connections are still closing. A port with a listener
        # stays taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{in_url(shown)}:{port}"


class _CutOff:
    """ASGI middleware that answers 503 to requests interrupted by the server's shutdown.

    Without it, uvicorn would print a traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if not started:
                answer = refusal(
                    503,
                    "The server is shutting down; send this request again later.",
                    headers={"Connection": "close"},
                )
                await answer(scope, receive, send)


class _Server(uvicorn.Server):
    """A server that tells when it answers requests, and waits for the running ones after SIGTERM.

    Ctrl-C has a person waiting: running requests get INTERRUPT_S.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], drain_s: int) -> None:
        super().__init__(config)
        self._on_ready, self._drain_s = on_ready, drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.config.timeout_graceful_shutdown = self._drain_s
        super().handle_exit(sig, frame)


def configured(app: ASGIApp, listener: socket.socket, proxy: Proxy = NO_PROXY) -> uvicorn.Config:
    """Return how uvicorn serves an ASGI app on a socket, perhaps behind a proxy."""
    trusted = proxy.forwarded_allow_ips
    app = guard_hosts(app, listener, proxy.allow_hosts)
    if proxy.root_path:
        app = BelowPath(app, proxy.root_path)
    return uvicorn.Config(
        _CutOff(app),
        http=PatientProtocol,
        log_level="warning",
        timeout_graceful_shutdown=INTERRUPT_S,
        server_header=False,
        forwarded_allow_ips=None if trusted is None else [*trusted],
    )


def run(
    app: ASGIApp,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    proxy: Proxy = NO_PROXY,
    beside: Callable[[], None] = lambda: None,
    drain_s: int = INTERRUPT_S,
) -> None:
    """Serve an ASGI app on the socket until Ctrl-C or SIGTERM.

    `on_ready` is called once it answers, and then `beside` in a thread of its own: if that raises,
    the server ends, and so does this call with its error. drain_s: seconds for running requests
    after SIGTERM. See `guard_hosts` for loopback addresses.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            beside()
        except BaseException as error:
            failed.append(error)
            server.should_exit = True

    def begin() -> None:
        on_ready()
        threading.Thread(target=work, name="featkit-start", daemon=True).start()

    server = _Server(configured(app, listener, proxy), begin, drain_s)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # the normal end of a server; uvicorn has closed everything by now
        pass
    finally:
        listener.close()
    if failed:
        raise failed[0]
