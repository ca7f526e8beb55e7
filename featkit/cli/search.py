"""`featkit search`: the pictures of an index nearest to one of yours."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featkit.cli.console import print_table
from featkit.cli.extras import need_extra


def search(
    index: Path,
    picture: Path,
    /,
    *,
    k: Annotated[int, Parameter(name=["--k", "-k"])] = 10,
    json_: bool = False,
) -> None:
    """Print the K pictures of INDEX nearest to PICTURE, by the cosine of their vectors: 1 is the same picture.

    Example: featkit search photos.index query.jpg -k 10

    Parameters
    ----------
    index
        A folder from `featkit index`.
    picture
        A picture file of any format that Pillow opens.
    k
        How many pictures.
    json_
        Print the result as JSON.
    """
    need_extra("cpu", "faiss", "onnxruntime")
    from featkit.index import Index

    with Index.open(index) as found:
        hits = found.search(picture, k=k)
    if json_:
        rows = [
            {
                "id": hit.id,
                "key": hit.key,
                "score": hit.score,
                "width": hit.width,
                "height": hit.height,
                "metadata": hit.metadata,
            }
            for hit in hits
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = [(rank, f"{hit.score:.4f}", hit.key, _size(hit.width, hit.height)) for rank, hit in enumerate(hits, 1)]
    print_table(f"Nearest to {picture}", ("", "score", "picture", "size"), table)


def _size(width: int | None, height: int | None) -> str:
    return f"{width}×{height}" if width and height else ""
