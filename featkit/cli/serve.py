"""`featkit serve`: embed and search over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.filesize import decimal

from featkit.cli.console import stdout
from featkit.cli.interrupts import MOST_DRAIN_S, allow_after_sigterm
from featkit.cli.options import Host, Port
from featkit.cli.serving import KeyFlags, ProxyFlags, described, keyring_of, proxy_of
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve(
    index: Path | None = None,
    /,
    *,
    model: Path | None = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_bytes: Annotated[int, Parameter(name="--max-bytes")] = 32 * 2**20,
    max_pixels: Annotated[int, Parameter(name="--max-pixels")] = 60_000_000,
    max_requests: int = 64,
    max_bytes_in_flight: int = 512 * 2**20,
    deadline_s: float = 60.0,
    drain_s: int = 20,
    access: KeyFlags | None = None,
    behind: ProxyFlags | None = None,
) -> None:
    """Serve INDEX, or only a model, over HTTP until Ctrl-C.

    Clients post image bytes to /v1/embed and /v1/search; /openapi.json describes all routes.

    Without keys, it listens on this machine only.

    Example: featkit serve photos.index --port 8000

    Example: featkit serve photos.index --host 0.0.0.0 --keys featkit-keys.json

    Parameters
    ----------
    index
        An index folder, whose own model embeds the queries.
    model
        A model file, to serve embedding without an index.
    max_bytes
        Refuse images with more bytes.
    max_pixels
        Refuse images with more pixels, before decoding them.
    max_requests
        Requests with a body that are accepted at the same time. More are answered 503 at once.
    max_bytes_in_flight
        Bytes of their bodies together, likewise.
    deadline_s
        Seconds for an answer, unless a request asks for others by the header
        X-Request-Deadline-Ms.
    drain_s
        Seconds that running requests have after SIGTERM. Nothing new is accepted then.
    """
    packages = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
    need_extra("serve", *packages, engines=("faiss", "onnxruntime"))
    from featkit.embedder import Embedder
    from featkit.images import ImageLimits
    from featkit.index import Index
    from featkit.serve.admission import Bounds
    from featkit.serve.app import make_app
    from featkit.serve.running import address_of, bind, run
    from featkit.serve.service import ServiceLimits
    from featkit.serve.starting import Starting

    if index is None and model is None:
        raise InputError("Nothing to serve: pass an index folder, or a model file with --model.")
    if min(max_requests, max_bytes_in_flight) < 1 or not deadline_s > 0:
        raise InputError("--max-requests, --max-bytes-in-flight and --deadline-s must be above 0.")
    if not 0 <= drain_s <= MOST_DRAIN_S:
        raise InputError(f"--drain-s is {drain_s}; it must be from 0 to {MOST_DRAIN_S}.")
    limits = ServiceLimits(
        images=ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels),
        bounds=Bounds(requests=max_requests, body_bytes=max_bytes_in_flight, deadline_s=deadline_s),
    )
    access, proxy = access or KeyFlags(), proxy_of(behind)
    opened: list[Index] = []
    lines: list[str] = []

    def make() -> "FastAPI":
        served = None
        if index is not None:
            served = Index.open(index)
            opened.append(served)
            embedder = served.open_embedder(model, limits=limits.images)
        else:
            embedder = Embedder(model, limits=limits.images)
        shown = f"{counted(len(served), 'image')} of {index}" if served is not None else str(model)
        lines.append(
            f"Serving {shown} with {embedder.backend_name} on {address} (routes:"
            f" {address}/openapi.json), at most {counted(max_requests, 'request')} and"
            f" {decimal(max_bytes_in_flight)} of images at once"
        )
        if (line := described(access, keyring)) is not None:
            lines.append(line)
        return make_app(
            served, embedder, limits=limits, keyring=keyring, open_metrics=access.open_metrics
        )

    def start() -> None:
        starting.load()
        for line in lines:  # once it is true
            stdout().print(line)

    listener = bind(host, port)
    try:
        keyring = keyring_of(access, listener)
        address = address_of(listener)
        starting = Starting(make)
        allow_after_sigterm(drain_s)
        run(starting, listener, proxy=proxy, beside=start, drain_s=drain_s)
    finally:
        for each in opened:
            each.close()
        listener.close()
