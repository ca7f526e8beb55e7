"""uvicorn's HTTP protocol with an end to connections that send nothing, or half a request."""

from __future__ import annotations

import asyncio
from typing import Any

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
    answered before it had arrived is read to its end for as long, without being kept.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

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
        if self._is_at_work or self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(TOO_SLOW % (len(DETAIL), DETAIL))
        self.transport.close()
