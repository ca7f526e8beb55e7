"""An answer arrives although the client is still sending its request."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from featkit.serve.refusals import refusal
from tests.serving import serving

LENGTH = 8 * 2**20  # more than the buffers of a connection


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """A service that refuses every request before its body."""
    app = FastAPI()

    @app.post("/")
    def refuse() -> object:
        return refusal(401, "The request needs a key.")

    with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def head(*headers: str) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: localhost", f"Content-Length: {LENGTH}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(2**16), b""))


def send_for_ever(connection: socket.socket) -> None:
    for _ in range(2000):
        connection.sendall(b"x")
        time.sleep(0.01)


@pytest.mark.parametrize("headers", [["Connection: close"], []])
def test_a_refusal_arrives_after_the_whole_body(
    address: tuple[str, int], headers: list[str]
) -> None:
    for _ in range(5):
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(head(*headers))
            time.sleep(0.05)  # the answer is on its way now
            connection.sendall(bytes(LENGTH))  # and this would be reset
            connection.shutdown(socket.SHUT_WR)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.endswith(b'{"detail":"The request needs a key.","images":[]}')


def test_the_answer_ends_before_the_body_does(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head("Connection: close") + b"x")
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"x" * 1000)


def test_who_sends_for_ever_is_cut_off(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featkit.serve.patience.HEAD_S", 0.5)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head("Connection: close"))
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(connection)


def test_a_broken_request_is_answered_to_its_end(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        time.sleep(0.05)
        connection.sendall(bytes(LENGTH))
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_an_idle_connection_is_closed_at_once(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featkit.serve.patience.HEAD_S", 0.2)
    with socket.create_connection(address, timeout=20) as connection:
        assert read_all(connection) == b""
