"""The routes: /v1/embed, /v1/search, /v1/items…, /healthz. The same router serves the HTTP service and the search page.

Pictures come as bytes only: no route takes a path or a URL. Work on pictures runs in threads, at most as many at once as
the process has processors, so that a flood of requests waits instead of filling the memory with decoded pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from featkit.embedder import Embedder
from featkit.errors import FeatkitError, InputError
from featkit.index import Index
from featkit.index import Item as IndexItem
from featkit.resources import usable_cpus
from featkit.serve import schemas
from featkit.serve.service import BadPictures, Embedded, Service, ServiceLimits
from featkit.serve.uploads import BadRequest, read_form

Result = TypeVar("Result")
Number = Annotated[int, Path(ge=0, le=2**62, description="An item's id.")]

DEFAULT_K = 10
# Ids begin at 0 in every index, and another index may answer at this address next: browsers keep a thumbnail, but ask each
# time, by its ETag, whether it is still the one.
THUMBNAIL_CACHE = "private, no-cache"
REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": schemas.Refusal, "description": "More bytes than the service takes."},
    415: {"model": schemas.Refusal, "description": "Not multipart/form-data."},
    422: {"model": schemas.Refusal, "description": "A picture or a field that cannot be used, by name and reason."},
}


def _form_schema(description: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that reads its form itself, for OpenAPI."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Pictures, as bytes."}
    form = {"type": "object", "required": ["files"], "properties": {"files": files, **fields}}
    content = {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def make_router(index: Index | None, embedder: Embedder, *, limits: ServiceLimits | None = None) -> APIRouter:
    """All routes over an index (None: only embedding) and an embedder.

    InputError when the index is of another model. An app that includes the router also calls `add_error_handlers`.
    """
    service = Service(index, embedder, limits or ServiceLimits())
    workers = anyio.CapacityLimiter(usable_cpus())
    router = APIRouter()

    async def in_thread(work: Callable[[], Result]) -> Result:
        return await anyio.to_thread.run_sync(work, limiter=workers)

    @router.get("/healthz", tags=["service"])
    def health() -> schemas.Health:
        """Say that the service answers, and what it runs."""
        return schemas.Health(
            status="ok",
            model=service.embedder.manifest.name,
            fingerprint=service.embedder.fingerprint,
            backend=service.embedder.backend_name,
            num_items=None if service.index is None else len(service.index),
        )

    @router.post("/v1/embed", tags=["pictures"], responses=REFUSALS, openapi_extra=_form_schema("Pictures to embed."))
    async def embed(request: Request) -> schemas.EmbedAnswer:
        """Give the unit vector of each picture. One bad picture refuses the request and says which and why."""
        form = await read_form(request, service.limits)
        embedded = await in_thread(lambda: service.embed(form.uploads))
        return schemas.EmbedAnswer(
            model=service.embedder.manifest.name,
            fingerprint=service.embedder.fingerprint,
            width=service.embedder.width,
            pictures=[
                schemas.EmbeddedPicture(name=one.name, height=one.height, width=one.width, vector=one.vector.tolist())
                for one in embedded
            ],
        )

    if index is None:
        return router

    k_field = {"type": "integer", "minimum": 1, "maximum": service.limits.max_k, "default": DEFAULT_K}

    @router.post(
        "/v1/search",
        tags=["pictures"],
        responses=REFUSALS,
        openapi_extra=_form_schema("Pictures to search with, and how many hits for each.", k=k_field),
    )
    async def search(request: Request) -> schemas.SearchAnswer:
        """Give the k pictures of the index nearest to each picture sent."""
        form = await read_form(request, service.limits)
        k = _checked_k(form.fields.get("k", str(DEFAULT_K)), service.limits.max_k)

        def work() -> list[schemas.PictureHits]:
            embedded = service.embed(form.uploads)
            return _search(_index(service), embedded, k)

        return schemas.SearchAnswer(fingerprint=service.embedder.fingerprint, pictures=await in_thread(work))

    _add_item_routes(router, service)
    return router


def _add_item_routes(router: APIRouter, service: Service) -> None:
    """The routes below /v1/items, which read the index only."""

    @router.get("/v1/items", tags=["items"])
    def items(
        offset: Annotated[int, Query(ge=0, le=2**62)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> schemas.ItemsAnswer:
        """List items in the order they were added."""
        index = _index(service)
        return schemas.ItemsAnswer(total=len(index), items=[_item(one) for one in index.items(offset, limit)])

    @router.get("/v1/sample", tags=["items"])
    def sample(
        limit: Annotated[int, Query(ge=1, le=200)] = 48, seed: Annotated[int, Query(ge=0, le=2**31)] = 0
    ) -> schemas.ItemsAnswer:
        """Pick items at random, the same for the same seed."""
        index = _index(service)
        return schemas.ItemsAnswer(total=len(index), items=[_item(one) for one in index.sample(limit, seed=seed)])

    @router.get("/v1/items/{number}", tags=["items"], responses={404: {"model": schemas.Refusal}})
    def item(number: Number) -> schemas.Item:
        """Describe one item."""
        return _item(_found(service, number))

    @router.get("/v1/items/{number}/neighbours", tags=["items"], responses={404: {"model": schemas.Refusal}})
    def neighbours(number: Number, k: Annotated[int, Query(ge=1)] = DEFAULT_K) -> schemas.NeighboursAnswer:
        """Give the k items nearest to one, itself first."""
        found = _found(service, number)
        hits = _index(service).search_item(number, k=_checked_k(str(k), service.limits.max_k))
        return schemas.NeighboursAnswer(item=_item(found), hits=[_hit(one) for one in hits])

    @router.get(
        "/v1/items/{number}/thumbnail",
        tags=["items"],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 304: {}, 404: {"model": schemas.Refusal}},
    )
    def thumbnail(number: Number, request: Request) -> Response:
        """Give an item's thumbnail as JPEG, with an ETag."""
        _found(service, number)
        data = _index(service).thumbnail(number)
        if data is None:
            raise HTTPException(404, f"Item {number} has no thumbnail.")
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": THUMBNAIL_CACHE}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/jpeg", headers=headers | {"X-Content-Type-Options": "nosniff"})


def add_error_handlers(app: FastAPI) -> None:
    """Answer featkit's errors as JSON of one shape: 422 for input, the request's own status, 503 for the rest."""

    @app.exception_handler(FeatkitError)
    async def refuse(_: Request, error: FeatkitError) -> JSONResponse:
        bad = error.pictures if isinstance(error, BadPictures) else ()
        pictures = [{"name": one.name, "reason": one.reason} for one in bad]
        status = error.status if isinstance(error, BadRequest) else 422 if isinstance(error, InputError) else 503
        return JSONResponse({"detail": str(error), "pictures": pictures}, status_code=status)


def _index(service: Service) -> Index:
    if service.index is None:
        raise BadRequest(404, "This service has no index to search; start it with one.")
    return service.index


def _found(service: Service, number: int) -> IndexItem:
    try:
        return _index(service).item(number)
    except InputError as error:
        raise HTTPException(404, f"There is no item {number}.") from error


def _checked_k(text: str, max_k: int) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= max_k or len(text) > 9:
        raise BadRequest(422, f"k is {text[:40]!r}; it must be a whole number from 1 to {max_k}.")
    return int(text)


def _search(index: Index, embedded: list[Embedded], k: int) -> list[schemas.PictureHits]:
    found = index.query(np.stack([one.vector for one in embedded]), k=k)
    return [
        schemas.PictureHits(name=one.name, height=one.height, width=one.width, hits=[_hit(hit) for hit in hits])
        for one, hits in zip(embedded, found, strict=True)
    ]


def _item(item: IndexItem) -> schemas.Item:
    return schemas.Item(**_fields(item))


def _hit(hit: Any) -> schemas.Hit:
    return schemas.Hit(score=float(hit.score), **_fields(hit))


def _fields(one: Any) -> dict[str, Any]:
    """What an item and a hit have in common."""
    return {
        "id": one.id,
        "key": one.key,
        "width": one.width,
        "height": one.height,
        "metadata": dict(one.metadata),
        "thumbnail": f"/v1/items/{one.id}/thumbnail",
    }
