"""The routes: /v1/embed, /v1/search, /v1/items…, /healthz. The same router serves the HTTP service
and the search page.

Images come as bytes only: no route takes a path or a URL. Work on images runs in threads, at
most as many at once as the process has processors, so that a flood of requests waits instead of
filling the memory with decoded images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from featkit.embedder import Embedder
from featkit.errors import FeatkitError
from featkit.index import Index, NoSuchItem
from featkit.index import Item as IndexItem
from featkit.index.records import in_json
from featkit.serve import schemas
from featkit.serve.service import BadImages, Service, ServiceLimits, Unavailable, log
from featkit.serve.uploads import BadRequest, read_form

Result = TypeVar("Result")
Number = Annotated[int, Path(ge=0, le=2**62, description="An item's id.")]

DEFAULT_K = 10
# Ids begin at 0 in every index, and another index may answer at this address next: browsers keep a
# thumbnail, but ask each time, by its ETag, whether it is still the one.
THUMBNAIL_CACHE = "private, no-cache"
REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": schemas.Refusal, "description": "More bytes than the service takes."},
    415: {"model": schemas.Refusal, "description": "Not multipart/form-data."},
    422: {
        "model": schemas.Refusal,
        "description": "An image or a field that cannot be used, by name and reason.",
    },
}


def _form_schema(description: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that reads its form itself, for OpenAPI."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "Images, as bytes.",
    }
    form = {"type": "object", "required": ["files"], "properties": {"files": files, **fields}}
    content = {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def make_router(
    index: Index | None, embedder: Embedder, *, limits: ServiceLimits | None = None
) -> APIRouter:
    """All routes over an index (None: only embedding) and an embedder.

    InputError when the index is of another model. An app that includes the router also calls
    `add_error_handlers`.
    """
    service = Service(index, embedder, limits or ServiceLimits())
    workers = anyio.CapacityLimiter(service.num_threads)
    router = APIRouter()

    async def in_thread(work: Callable[[], Result]) -> Result:
        return await anyio.to_thread.run_sync(work, limiter=workers)

    @router.get("/healthz", tags=["service"], responses={503: {"model": schemas.Health}})
    def health(response: Response) -> schemas.Health:
        """Say whether the service can answer, and what it runs."""
        status, detail, num_items = "ok", "", None
        if service.index is not None:
            try:
                num_items = service.ask(len)
            except Unavailable as error:
                status, detail = "index unreadable", str(error)
        if service.is_failing:
            status, detail = (
                "model failing",
                "The model failed at each of the last requests; the server's log has the reason.",
            )
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

    @router.post(
        "/v1/embed",
        tags=["images"],
        responses=REFUSALS,
        openapi_extra=_form_schema("Images to embed."),
    )
    async def embed(request: Request) -> schemas.EmbedAnswer:
        """Give the unit vector of each image. One bad image refuses the request and says which
        and why."""
        form = await read_form(request, service.limits)
        embedded = await in_thread(lambda: service.embed(form.uploads))
        return schemas.EmbedAnswer(
            model=service.embedder.manifest.name,
            fingerprint=service.embedder.fingerprint,
            width=service.embedder.width,
            images=[
                schemas.EmbeddedImage(
                    name=one.name, height=one.height, width=one.width, vector=one.vector.tolist()
                )
                for one in embedded
            ],
        )

    if index is None:
        return router

    k_field = {
        "type": "integer",
        "minimum": 1,
        "maximum": service.limits.max_k,
        "default": DEFAULT_K,
    }

    @router.post(
        "/v1/search",
        tags=["images"],
        responses=REFUSALS,
        openapi_extra=_form_schema("Images to search with, and how many hits for each.", k=k_field),
    )
    async def search(request: Request) -> schemas.SearchAnswer:
        """Give the k images of the index nearest to each image sent."""
        form = await read_form(request, service.limits)
        k = _checked_k(form.fields.get("k", str(DEFAULT_K)), service.limits.max_k)

        def work() -> list[schemas.ImageHits]:
            embedded = service.embed(form.uploads)
            return [
                schemas.ImageHits(
                    name=one.name,
                    height=one.height,
                    width=one.width,
                    hits=[_hit(hit) for hit in hits],
                )
                for one, hits in zip(embedded, service.search(embedded, k=k), strict=True)
            ]

        return schemas.SearchAnswer(
            fingerprint=service.embedder.fingerprint, images=await in_thread(work)
        )

    _add_item_routes(router, service)
    return router


def _add_item_routes(router: APIRouter, service: Service) -> None:
    """The routes below /v1/items, which read the index only."""

    @router.get("/v1/items", tags=["items"])
    def items(
        offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> schemas.ItemsAnswer:
        """List items in the order they were added."""
        return _ask(service, lambda index: _items(index, index.items(offset, limit)))

    @router.get("/v1/sample", tags=["items"])
    def sample(
        limit: Annotated[int, Query(ge=1, le=200)] = 48,
        seed: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> schemas.ItemsAnswer:
        """Pick items at random, the same for the same seed."""
        return _ask(service, lambda index: _items(index, index.sample(limit, seed=seed)))

    @router.get("/v1/items/{number}", tags=["items"], responses={404: {"model": schemas.Refusal}})
    def item(number: Number) -> schemas.Item:
        """Describe one item."""
        return _item(_ask(service, lambda index: index.item(number)))

    @router.get(
        "/v1/items/{number}/neighbours",  # the first spelling of this route  # quoted
        include_in_schema=False,
    )
    @router.get(
        "/v1/items/{number}/neighbors", tags=["items"], responses={404: {"model": schemas.Refusal}}
    )
    def neighbors(
        number: Number, k: Annotated[int, Query(ge=1)] = DEFAULT_K
    ) -> schemas.NeighborsAnswer:
        """Give the k items nearest to one, itself first."""
        k = _checked_k(str(k), service.limits.max_k)
        item, hits = _ask(
            service, lambda index: (index.item(number), index.search(item=number, k=k))
        )
        return schemas.NeighborsAnswer(item=_item(item), hits=[_hit(one) for one in hits])

    @router.get(
        "/v1/items/{number}/thumbnail",
        tags=["items"],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 304: {}, 404: {"model": schemas.Refusal}},
    )
    def thumbnail(number: Number, request: Request) -> Response:
        """Give an item's thumbnail as JPEG, with an ETag."""
        data = _ask(service, lambda index: index.thumbnail(number))
        if data is None:
            raise BadRequest(404, f"Item {number} has no thumbnail.")
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
            "Cache-Control": THUMBNAIL_CACHE,
        }
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(
            data, media_type="image/jpeg", headers=headers | {"X-Content-Type-Options": "nosniff"}
        )


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error as JSON of one shape, with a sentence for the client and no path of the
    server.

    422 for an image or a value that cannot be used, 404 for an item that does not exist, the
    request's own status where it is wrong as a whole, 503 when the index, the model or the memory
    fails, and 500 for the rest, whose traceback is logged.
    """

    @app.exception_handler(FeatkitError)
    async def refuse(_: Request, error: FeatkitError) -> JSONResponse:
        if isinstance(error, BadImages):
            return _refusal(
                422,
                str(error),
                [{"name": one.name, "reason": one.reason} for one in error.images],
            )
        if isinstance(error, NoSuchItem):
            return _refusal(404, f"There is no item {error.item}.")
        if isinstance(error, BadRequest):
            return _refusal(error.status, str(error))
        if isinstance(error, Unavailable):
            return _refusal(503, str(error))
        log.error("featkit: %s", error)
        return _refusal(503, "The service cannot answer now; the server's log has the reason.")

    @app.exception_handler(MemoryError)
    async def refuse_for_memory(_: Request, error: MemoryError) -> JSONResponse:
        log.error("featkit: a request needs more memory than there is (%s)", error)
        return _refusal(
            503,
            "The server has not enough memory for this request; send fewer or smaller images, or"
            " try later.",
        )

    @app.exception_handler(RequestValidationError)
    async def refuse_value(_: Request, error: RequestValidationError) -> JSONResponse:
        wrong = error.errors()[0]
        place, *name = [str(part) for part in wrong["loc"]]
        value = str(wrong.get("input"))[:40]
        if place == "path":
            return _refusal(404, f"There is no item {value}.")
        return _refusal(
            422,
            f"{' '.join(name) or place} is {value!r}:"
            f" {wrong['msg'][:1].lower()}{wrong['msg'][1:]}.",
        )

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> JSONResponse:
        return _refusal(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)  # Starlette logs it after the answer
    async def fail(_: Request, _error: Exception) -> JSONResponse:
        return _refusal(500, "The server failed at this request; its log has the reason.")


def _refusal(
    status: int,
    detail: str,
    images: Sequence[dict[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse(
        {"detail": detail, "images": list(images)}, status_code=status, headers=headers
    )


def _ask(service: Service, work: Callable[[Index], Result]) -> Result:
    """As `Service.ask`, and 404 where there is no index."""
    if service.index is None:
        raise BadRequest(404, "This service has no index to search; start it with one.")
    return service.ask(work)


def _checked_k(text: str, max_k: int) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= max_k or len(text) > 9:
        raise BadRequest(422, f"k is {text[:40]!r}; it must be a whole number from 1 to {max_k}.")
    return int(text)


def _items(index: Index, items: Sequence[IndexItem]) -> schemas.ItemsAnswer:
    return schemas.ItemsAnswer(total=len(index), items=[_item(one) for one in items])


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
        "metadata": {name: in_json(value) for name, value in one.metadata.items()},
        "thumbnail": f"/v1/items/{one.id}/thumbnail",
    }
