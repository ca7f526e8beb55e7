"""uvicorn's HTTP protocol with an end to connections that send nothing, or half a request, and with
answers that arrive although the request is still being sent."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for the line and headers of a request
TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
DETAIL = b'{"detail":"The request did not arrive in time; send it again.","images":[]}'


class PatientProtocol(H11Protocol):
    """Closes a connection that stays without a whole head of a request for HEAD_S.

    A body has a time of its own, in admission.py, while its request is at work. One that was
    answered before it had arrived is read to its end for as long, without being kept: if the
    connection were closed at once, the system would answer the rest with a reset, and the client,
    or a proxy, would lose the answer (RFC 9112, section 9.6).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self)))
        self._start()

    def data_received(self, data: bytes) -> None:
        if not self._lingers:
            super().data_received(data)

    def linger(self, transport: asyncio.Transport) -> bool:
        """End our direction of a connection and return True if the client is still sending; False
        if it is to be closed."""
        is_sending = self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        if self._lingers or not is_sending or transport.is_closing():
            return False
        if not transport.can_write_eof():
            return False
        self._lingers = True
        self.flow.resume_reading()
        transport.write_eof()
        self._start()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_at_work:
            self._stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_at_work:
            self._start()

    @property
    def lingers(self) -> bool:
        """Return whether everything is sent, and the rest of the request is read and dropped."""
        return self._lingers

    @property
    def _is_at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(HEAD_S, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        if self._is_at_work or (self.transport.is_closing() and not self._lingers):
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(TOO_SLOW % (len(DETAIL), DETAIL))
        self.transport.close()


class _Lingering:
    """A transport that is closed only when the client has sent its request."""

    def __init__(self, transport: asyncio.Transport, protocol: PatientProtocol) -> None:
        self._transport, self._protocol = transport, protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.lingers or self._transport.is_closing()

    def close(self) -> None:
        if not self._protocol.linger(self._transport):
            self._transport.close()
