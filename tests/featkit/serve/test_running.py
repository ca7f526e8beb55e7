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
import asyncio
from fastapi import FastAPI
from featkit.serve.running import address_of, bind, run

app, listener = FastAPI(), bind("127.0.0.1", 0)

@app.get("/")
async def wait() -> None:
    print("asked", flush=True)
    await asyncio.sleep(60)

print(listener.getsockname()[1], flush=True)
run(app, listener)
"""


def test_requests_cut_off_by_shutdown_are_answered() -> None:
    command = [sys.executable, "-c", SLOW_APP]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            with socket.create_connection(("127.0.0.1", int(process.stdout.readline()))) as client:
                client.settimeout(20)
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert process.stdout.readline() == "asked\n"
                process.send_signal(signal.SIGINT)
                assert client.recv(2**16).startswith(b"HTTP/1.1 503")
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert len(said.splitlines()) <= 1, said
