"""Vectors as bytes instead of JSON: a fifth of the size, and exact."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from fastapi import Response

PLAIN, NPY = "application/octet-stream", "application/x-npy"
KINDS = (PLAIN, NPY)
FINGERPRINT_HEADER = "X-Featkit-Fingerprint"
HEADERS: dict[str, Any] = {
    FINGERPRINT_HEADER: {
        "description": "The model's fingerprint, with vectors as bytes.",
        "schema": {"type": "string"},
    }
}


def wanted(accept: str) -> str | None:
    """Return the kind of bytes that a request's Accept header names before JSON or anything else
    that JSON fits; None for JSON. Weights (`;q=`) are not looked at."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in KINDS:
            return kind
        if kind in ("application/json", "application/*", "*/*"):
            return None
    return None


def answer(vectors: np.ndarray, kind: str, *, fingerprint: str) -> Response:
    """Return vectors (n, D) float32 as bytes of a kind."""
    vectors = vectors.astype("<f4")
    if kind == NPY:
        file = io.BytesIO()
        np.save(file, vectors)
        data = file.getvalue()
    else:
        data = vectors.tobytes()
    return Response(data, media_type=kind, headers={FINGERPRINT_HEADER: fingerprint})
