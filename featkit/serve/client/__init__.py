"""Typed clients of the service, for programs on any machine.

with Client("http://127.0.0.1:8000") as client:
    vectors = client.embed(["cat.jpg", "dog.jpg"])        # (2, D) float32
    (hits,) = client.search(["cat.jpg"], k=5)

`AsyncClient` has the same methods as coroutines. What both do is written once, without I/O:
parts.py reads images, calls.py builds requests and parses answers, attempts.py decides on retries,
answers.py turns answers into errors, and paging.py goes through all items.
"""

from featkit.serve.client.asynchronous import AsyncClient
from featkit.serve.client.synchronous import Client

__all__ = ["AsyncClient", "Client"]
