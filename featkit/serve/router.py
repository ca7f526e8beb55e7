"""The routes: /v1/embed, /v1/search, /v1/items…, /livez, /readyz, /healthz.

The HTTP service and the search page share them. To add a route, write one function below and a
schema for its answer in schemas.py. Images come as bytes only: no route takes a path or a URL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response

from featkit.embedder import Embedder
from featkit.index import Index, Refinement
from featkit.serve import raw_vectors, refining, schemas
from featkit.serve.admission import AdmissionControl, accepted_of
from featkit.serve.refusals import BadRequest, Unavailable, add_error_handlers, responses
from featkit.serve.service import Service, ServiceLimits
from featkit.serve.uploads import read_form

Result = TypeVar("Result")

DEFAULT_K = 10
# Ids start at 0 in every index, and another index may be served at this address next. So browsers
# keep thumbnails but check each time, by the ETag, that they are still current.
THUMBNAIL_CACHE = "private, no-cache"

REFUSED_FORM = responses(
    _413="The request has more bytes than the service accepts.",
    _415="The request is not multipart/form-data.",
    _422="An image or a field cannot be used.",
)
WHERE_HELP = "A filter, such as `label = 'cat' and width >= 640`: only items that match it."
REFUSED_VALUE = responses(_422="A value cannot be used.")
REFUSED_ITEM = responses(_404="There is no such item.", _422="A value cannot be used.")

always = APIRouter()
with_index = APIRouter(responses=responses(_503="The index cannot be read now."))


def add_routes(
    app: FastAPI, index: Index | None, embedder: Embedder, *, limits: ServiceLimits | None = None
) -> Service:
    """Add the routes over an embedder, and those over an index if there is one, to an app.

    Returns the service behind them.

    InputError if the index is of another model.
    """
    service = app.state.service = Service(index, embedder, limits or ServiceLimits())
    app.add_middleware(
        AdmissionControl,
        admission=service.admission,
        max_request_bytes=service.max_request_bytes,
    )
    add_error_handlers(app)
    app.include_router(always)
    if index is not None:
        app.include_router(with_index)
    return service


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
ItemId = Annotated[int, Path(alias="id", ge=0, le=2**62, description="An item's id.")]
Where = Annotated[str | None, Query(description=WHERE_HELP)]
Refine = Annotated[Refinement, Depends(refining.from_query)]
K = Annotated[int, Query(ge=1, description="How many hits; the service has an upper limit.")]


async def in_thread(service: Service, work: Callable[[], Result]) -> Result:
    """Return work(), run in one of the service's threads.

    There are as many threads as processors, so a flood of requests waits instead of filling the
    memory with decoded images.
    """
    return await anyio.to_thread.run_sync(work, limiter=service.workers)


def _form_schema(description: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAPI's request body for a route that parses its form itself."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "Images, as bytes.",
    }
    form = {"type": "object", "required": ["files"], "properties": {"files": files, **fields}}
    content = {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


K_FIELD = {
    "type": "integer",
    "minimum": 1,
    "default": DEFAULT_K,
    "description": "How many hits for each image; the service has an upper limit.",
}
WHERE_FIELD = {"type": "string", "description": WHERE_HELP}


@always.get("/healthz", tags=["service"], responses={503: {"model": schemas.Health}})
def check_health(service: ServiceOf, response: Response) -> schemas.Health:
    """Report whether the service can answer, and what it runs."""
    status, detail, num_items = "ok", "", None
    if service.index is not None:
        try:
            num_items = service.ask(len)
        except Unavailable as error:
            status, detail = "index unreadable", str(error)
    if service.is_failing:
        status = "model failing"
        detail = "The model failed on each of the last requests; the server's log has the reason."
    if status != "ok":
        response.status_code = 503
    return schemas.Health(
        status=status,
        model=service.embedder.manifest.name,
        fingerprint=service.embedder.fingerprint,
        backend=service.embedder.backend_name,
        num_items=num_items,
        detail=detail,
    )


@always.get("/livez", tags=["service"])
async def check_life() -> schemas.Life:
    """Report that the process answers."""
    return schemas.Life(status="ok")


@always.get("/readyz", tags=["service"], responses={503: {"model": schemas.Health}})
def check_readiness(service: ServiceOf, response: Response) -> schemas.Health:
    """Report whether the service can answer requests, as /healthz does.

    Until its index and model are open it answers 503.
    """
    return check_health(service, response)


@always.post(
    "/v1/embed",
    tags=["images"],
    response_model=schemas.EmbedAnswer,
    responses={
        200: {"content": {kind: {} for kind in raw_vectors.KINDS}, "headers": raw_vectors.HEADERS},
        **REFUSED_FORM,
    },
    openapi_extra=_form_schema("The images to embed."),
)
async def embed(service: ServiceOf, request: Request) -> schemas.EmbedAnswer | Response:
    """Return the unit vector of each image. One bad image refuses the whole request.

    If the request accepts application/octet-stream rather than JSON, the answer is float32,
    little-endian, one vector after another; if application/x-npy, the same as NumPy's .npy.
    """
    form = await read_form(request, service.limits)
    accepted = accepted_of(request)
    embedded = await in_thread(service, lambda: service.embed(form.uploads, accepted=accepted))
    embedder = service.embedder
    if (kind := raw_vectors.wanted(request.headers.get("accept", ""))) is not None:
        vectors = np.stack([image.vector for image in embedded])
        return raw_vectors.answer(vectors, kind, fingerprint=embedder.fingerprint)
    return schemas.EmbedAnswer(
        model=embedder.manifest.name,
        fingerprint=embedder.fingerprint,
        width=embedder.width,
        images=[
            schemas.EmbeddedImage(
                name=image.name,
                height=image.height,
                width=image.width,
                vector=image.vector.tolist(),
            )
            for image in embedded
        ],
    )


@with_index.post(
    "/v1/search",
    tags=["images"],
    responses=REFUSED_FORM,
    openapi_extra=_form_schema(
        "The images to search with.", k=K_FIELD, where=WHERE_FIELD, **refining.FIELDS
    ),
)
async def search(service: ServiceOf, request: Request) -> schemas.SearchAnswer:
    """Return the k items of the index nearest to each image, of those that match the filter."""
    form = await read_form(request, service.limits)
    k = _checked_k(form.fields.get("k", str(DEFAULT_K)), service.limits.max_k)
    where = form.fields.get("where") or None  # a browser sends an empty field as empty text
    refine = refining.from_form(form.fields)
    accepted = accepted_of(request)

    def work() -> list[schemas.ImageHits]:
        service.ask(lambda state: state.count(where))  # refuses a wrong filter before the work
        embedded = service.embed(form.uploads, accepted=accepted)
        accepted.check()
        found = service.search(embedded, k=k, where=where, refine=refine)
        return [
            schemas.ImageHits(
                name=image.name,
                height=image.height,
                width=image.width,
                hits=[schemas.Hit.of(hit) for hit in hits],
            )
            for image, hits in zip(embedded, found, strict=True)
        ]

    return schemas.SearchAnswer(
        fingerprint=service.embedder.fingerprint, images=await in_thread(service, work)
    )


@with_index.get("/v1/items", tags=["items"], responses=REFUSED_VALUE)
def list_items(
    service: ServiceOf,
    offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    where: Where = None,
) -> schemas.ItemsAnswer:
    """List items in the order they were added; `total` is the number of those that match."""
    where = where or None
    return service.ask(
        lambda state: schemas.ItemsAnswer.of(
            state.count(where), state.items(offset, limit, where=where)
        )
    )


@with_index.get("/v1/sample", tags=["items"], responses=REFUSED_VALUE)
def sample_items(
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=200)] = 48,
    seed: Annotated[int, Query(ge=0, le=2**31)] = 0,
    where: Where = None,
) -> schemas.ItemsAnswer:
    """Return random items, the same for the same seed; `total` is the number of those that
    match."""
    where = where or None
    return service.ask(
        lambda state: schemas.ItemsAnswer.of(
            state.count(where), state.sample(limit, seed=seed, where=where)
        )
    )


@with_index.get("/v1/items/{id}", tags=["items"], responses=REFUSED_ITEM)
def item(service: ServiceOf, item_id: ItemId) -> schemas.Item:
    """Describe an item."""
    return schemas.Item.of(service.ask(lambda state: state.item(item_id)))


# the spelling of the first versions
@with_index.get("/v1/items/{id}/neighbours", include_in_schema=False)  # quoted
@with_index.get("/v1/items/{id}/neighbors", tags=["items"], responses=REFUSED_ITEM)
def neighbors(
    service: ServiceOf,
    item_id: ItemId,
    refine: Refine,
    k: K = DEFAULT_K,
    where: Where = None,
) -> schemas.NeighborsAnswer:
    """Return the k items nearest to an item, itself first if it matches the filter."""
    k = _checked_k(str(k), service.limits.max_k)
    item, hits = service.ask(
        lambda state: (
            state.item(item_id),
            state.search(item=item_id, k=k, where=where or None, refine=refine),
        )
    )
    return schemas.NeighborsAnswer(
        item=schemas.Item.of(item), hits=[schemas.Hit.of(hit) for hit in hits]
    )


@with_index.get(
    "/v1/items/{id}/thumbnail",
    tags=["items"],
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 304: {}, **REFUSED_ITEM},
)
def thumbnail(service: ServiceOf, item_id: ItemId, request: Request) -> Response:
    """Return an item's thumbnail as JPEG, with an ETag."""
    data = service.ask(lambda state: state.thumbnail(item_id))
    if data is None:
        raise BadRequest(404, f"Item {item_id} has no thumbnail.")
    headers = {
        "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
        "Cache-Control": THUMBNAIL_CACHE,
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers["X-Content-Type-Options"] = "nosniff"
    return Response(data, media_type="image/jpeg", headers=headers)


def _checked_k(text: str, max_k: int) -> int:
    # the length first: int() of a very long text takes time and raises past 4,300 digits
    is_number = len(text) <= 9 and text.isascii() and text.isdigit()
    if not is_number or not 1 <= int(text) <= max_k:
        raise BadRequest(422, f"k is {text[:40]!r}; it must be a whole number from 1 to {max_k}.")
    return int(text)
