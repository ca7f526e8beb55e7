"""Addresses: a port that is taken, a host that is none."""

from __future__ import annotations

import re

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
    second = bind("127.0.0.1", int(named[2]))  # it is free indeed
    second.close()
    first.close()
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_of_elsewhere_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--host {host} is no address")):
        bind(host, 0)


def test_a_port_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="--port is 70000"):
        bind("127.0.0.1", 70_000)


def test_the_address_is_one_that_a_browser_opens() -> None:
    with bind("0.0.0.0", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
