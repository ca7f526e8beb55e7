"""Serve an app on a real port while a test sends requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from featkit.serve.proxy import Proxy
from featkit.serve.running import NO_PROXY, address_of, bind, configured


@contextmanager
def serving(app: FastAPI, proxy: Proxy = NO_PROXY) -> Iterator[str]:
    """Serve `app` in a thread and yield its address."""
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(configured(app, listener, proxy))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()
