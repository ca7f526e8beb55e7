"""ASGI middleware that lets a request pass only with a key whose scopes and rates allow it.

SCOPES_BY_ROUTE is the one table of which scope a route needs. Every path needs a key, whether a
route has it or not; only the probes are open to everybody, and /metrics by an option.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit.serve import keys
from featkit.serve.admission import content_length
from featkit.serve.keyring import HeldKey, Keyring, KeysUnreadable
from featkit.serve.proxy import route_path
from featkit.serve.rates import TokenBucket
from featkit.serve.refusals import refusal

PROBES = frozenset(("/livez", "/readyz", "/healthz"))
METRICS = "/metrics"
READING = frozenset(("GET", "HEAD", "OPTIONS"))
# The first row that fits a request decides. A path is that of a route, without the root path.
SCOPES_BY_ROUTE: tuple[tuple[frozenset[str] | None, re.Pattern[str], keys.Scope], ...] = (
    # None: every method
    (None, re.compile(r"/v1/admin(/.*)?|.*/swap", re.DOTALL), "admin"),
    (READING, re.compile(r".*", re.DOTALL), "read"),
    # searching and embedding change nothing, of a named index either
    (
        frozenset(("POST",)),
        re.compile(r"/v1/(indexes/[^/]+/)?(embed|embeddings|search)"),
        "read",
    ),
    (None, re.compile(r".*", re.DOTALL), "write"),
)
HELD_KEY = "featkit.key"  # in the scope of a request: its HeldKey


def scope_for(method: str, path: str) -> keys.Scope:
    """Return the scope that a request needs."""
    # Starlette's patterns end with $, which also fits before a line feed at the end.
    path = path.removesuffix("\n")
    return next(
        scope
        for methods, pattern, scope in SCOPES_BY_ROUTE
        if (methods is None or method in methods) and pattern.fullmatch(path)
    )


def charge_images(request: HTTPConnection, num_images: int) -> None:
    """Charge a request's key for its images, before the work on them.

    Does nothing if the service has no keys or the key no limit. HTTPException 429, with
    Retry-After, if the key has sent too many lately; 413 if it may never send that many at once.
    """
    held: HeldKey | None = request.scope.get(HELD_KEY)
    if held is not None:
        _charge(held.image_bucket, num_images, "image")


def _charge(bucket: TokenBucket | None, amount: int, unit: str) -> None:
    if bucket is None:
        return
    wait_s = bucket.take(amount)
    rate = bucket.rate
    if math.isinf(wait_s):
        raise HTTPException(
            413,
            f"This key may send {rate.burst:,.0f} {unit}s at once; send fewer in one request.",
        )
    if wait_s > 0:
        raise HTTPException(
            429,
            f"This key may send {rate.per_second:,g} {unit}s per second; send this request again"
            " later.",
            headers={"Retry-After": str(math.ceil(wait_s))},
        )


class KeyGuard:
    """The middleware. It answers 401 without a valid key, 403 if the key lacks the scope, 429 and
    413 past the key's rates, and 503 if the file of keys cannot be used.

    It answers before the body is read. Bytes are charged by Content-Length before the body is read,
    and as they arrive without it.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, *, open_metrics: bool = False) -> None:
        self.app, self.keyring = app, keyring
        self._open = PROBES | {METRICS} if open_metrics else PROBES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the service has none, so none may come in
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "lifespan" or self._is_open(scope):
            await self.app(scope, receive, send)
            return
        held = self._admitted(scope)
        if isinstance(held, Response):
            await held(scope, receive, send)
            return
        paid = content_length(scope)
        try:
            _charge(held.byte_bucket, paid, "byte")
        except HTTPException as error:
            answer = refusal(error.status_code, error.detail, headers=error.headers)
            await answer(scope, receive, send)
            return
        scope[HELD_KEY] = held

        async def receive_and_charge() -> Message:
            nonlocal paid
            message = await receive()
            if message["type"] == "http.request":
                paid -= len(message.get("body", b""))
                if paid < 0:  # more than Content-Length, or without it
                    _charge(held.byte_bucket, -paid, "byte")
                    paid = 0
            return message

        await self.app(scope, receive_and_charge, send)

    def _is_open(self, scope: Scope) -> bool:
        return route_path(scope) in self._open and scope["method"] in READING

    def _admitted(self, scope: Scope) -> HeldKey | Response:
        """Return the request's key, or the answer that refuses it."""
        tokens = credentials(scope)
        if not tokens:
            return _unauthorized(
                "The request needs a key: send it as `Authorization: Bearer KEY`, or as"
                " `X-Api-Key: KEY`."
            )
        if len(tokens) > 1:
            return _unauthorized("The request has several keys; send one.", error="invalid_request")
        try:
            held = self.keyring.find(*tokens)
        except KeysUnreadable as error:
            return refusal(503, str(error))
        if held is None:
            return _unauthorized(
                "The key is not valid; it may be mistyped or revoked.", error="invalid_token"
            )
        if held.key.has_expired(datetime.now(UTC)):
            return _unauthorized("The key has expired; ask for another.", error="invalid_token")
        needed = scope_for(scope["method"], route_path(scope))
        if needed not in held.key.scopes:
            return refusal(
                403,
                f"The key lacks the scope {needed}, which this request needs.",
                headers={"WWW-Authenticate": _challenge("insufficient_scope", scope=needed)},
            )
        return held


def credentials(scope: Scope) -> set[bytes]:
    """Return the different keys in a request's headers, as they were sent.

    Authorization of another kind, such as that of a proxy's login, is not a key.
    """
    tokens: set[bytes] = set()
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            tokens.add(value.strip())
        elif name == b"authorization":
            kind, _, token = value.strip().partition(b" ")
            if kind.lower() == b"bearer":
                tokens.add(token.strip())
    return tokens


def _unauthorized(detail: str, *, error: str | None = None) -> Response:
    return refusal(401, detail, headers={"WWW-Authenticate": _challenge(error)})


def _challenge(error: str | None, **values: str) -> str:
    """Return the value of WWW-Authenticate (RFC 6750, section 3)."""
    given = {"realm": "featkit"} | ({} if error is None else {"error": error}) | values
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in given.items())
