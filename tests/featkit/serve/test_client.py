"""The client, against the service on a real port."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index
from featkit.serve.client import Client
from featkit.serve.running import bind
from tests.featkit.serve.conftest import NUM_PICTURES, picture, png


def test_client_embeds_searches_and_fetches(live_address: str, embedder: Embedder, index: Index, tmp_path: Path) -> None:
    file = tmp_path / "query.png"
    file.write_bytes(png(6))
    with Client(live_address) as client:
        assert client.health().num_items == NUM_PICTURES
        np.testing.assert_allclose(client.embed([file, png(2)]), embedder.embed([picture(6), picture(2)]), atol=1e-6)
        (hits,) = client.search([file], k=2)
        assert hits[0].key == "blocks/6.png"
        assert len(hits) == 2
        assert client.neighbours(hits[0].id, k=1)[0].id == hits[0].id
        assert client.thumbnail(hits[0].id) == index.thumbnail(hits[0].id)


def test_client_says_what_the_service_refused(live_address: str) -> None:
    with Client(live_address) as client:
        with pytest.raises(InputError, match="picture 0 is not a picture"):
            client.embed([b"text"])
        with pytest.raises(InputError, match="There is no item 99"):
            client.thumbnail(99)
        with pytest.raises(InputError, match="No picture was given"):
            client.search([])


def test_client_says_that_nobody_answers() -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(EnvironmentProblem, match="does not answer"):
        client.health()
