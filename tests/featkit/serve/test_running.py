"""Binding to an address, and shutdown."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.serve.running import address_of, bind


def test_a_port_that_is_taken_names_the_next_free_one() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(EnvironmentProblem) as caught:
        bind("127.0.0.1", port)
    named = re.search(r"Port (\d+) is taken .* is (\d+): add --port \2\.$", str(caught.value))
    assert named is not None
    assert int(named[1]) == port
    second = bind("127.0.0.1", int(named[2]))  # it really is free
    second.close()
    first.close()
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--host {host} is not an address")):
        bind(host, 0)


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="--port is 70000"):
        bind("127.0.0.1", 70_000)


def test_the_address_can_be_opened_in_a_browser() -> None:
    with bind("0.0.0.0", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_service_refuses_dns_rebinding(model: Path) -> None:
    command = [sys.executable, "-m", "featkit", "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert address is not None, said
            health = f"{address[0]}/healthz"
            assert httpx.get(health).status_code == 200
            assert httpx.get(health, headers={"Host": "evil.example"}).status_code == 400
        finally:
            process.terminate()


SLOW_APP = """
import asyncio, sys
from fastapi import FastAPI
from featkit.cli.interrupts import allow_after_sigterm, end_on_interrupt
from featkit.serve.running import address_of, bind, run

if sys.argv[2] == "watched":
    end_on_interrupt()
app, listener, seconds, drain_s = FastAPI(), bind("127.0.0.1", 0), float(sys.argv[1]), 10

@app.get("/")
async def wait() -> str:
    print("asked", flush=True)
    await asyncio.sleep(seconds)
    return "done"

print(listener.getsockname()[1], flush=True)
allow_after_sigterm(drain_s)
run(app, listener, drain_s=drain_s)
"""


@pytest.mark.parametrize(
    ("number", "seconds", "status", "watchdog"),
    [(signal.SIGINT, 60, 503, "unwatched"), (signal.SIGTERM, 3, 200, "watched")],
)
def test_running_requests_are_answered_at_the_end(
    number: signal.Signals, seconds: float, status: int, watchdog: str
) -> None:
    """After SIGTERM they are waited for, longer than any other command may take."""
    command = [sys.executable, "-c", SLOW_APP, str(seconds), watchdog]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = ("127.0.0.1", int(process.stdout.readline()))
            with socket.create_connection(address) as client:
                client.settimeout(20)
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert process.stdout.readline() == "asked\n"
                process.send_signal(number)
                assert client.recv(2**16).startswith(b"HTTP/1.1 %d" % status)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert len(said.splitlines()) <= 1, said
