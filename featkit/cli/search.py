"""`featkit search`: find the images of an index most similar to one of yours."""

import tempfile
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.cli.console import print_json, print_table, stdout
from featkit.cli.item_table import in_json, shown_metadata, shown_size
from featkit.cli.options import AsJson, Where
from featkit.cli.promising import report_failed_build
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    import numpy as np

    from featkit.index import Hit, Index, IndexState, Refinement


def search(
    index: Path,
    image: Path,
    /,
    *more: Path,
    minus: Annotated[list[Path] | None, Parameter(negative=())] = None,
    k: Annotated[int, Parameter(name=["--k", "-k"])] = 10,
    where: Where = None,
    min_score: float | None = None,
    expand: int = 0,
    rerank: int = 0,
    diversity: float = 0.0,
    page: Path | None = None,
    open_: bool = False,
    json_: AsJson = False,
) -> None:
    """Print the K images of INDEX most similar to IMAGE, or to several together, best first.

    The score is the cosine similarity of the two vectors; 1 means that they are equal.

    Example: featkit search photos.index query.jpg -k 10

    Example: featkit search photos.index query.jpg --where "folder = 'objects/mug' and width >= 300"

    Parameters
    ----------
    index
        A folder from `featkit index`.
    image
        An image file of any format that Pillow opens.
    more
        Further images; all together are one query, for what they have in common.
    minus
        An image to lead away from. Can be repeated.
    k
        How many images to print.
    min_score
        Leave out images with a lower score.
    expand
        Search again with the query moved towards its first EXPAND hits, such as 3.
    rerank
        Order the first RERANK hits again by the neighbors that they share with the query, such as
        100.
    diversity
        From 0 to 1: with more, images that are like earlier ones come later.
    page
        Also write the results to this HTML file, with the images embedded in it.
    open_
        Open the HTML page in the browser. Without --page, it is a temporary file.
    """
    need_extra("cpu", "faiss", "onnxruntime")
    from featkit.index import Index, Refinement
    from featkit.index.refining import combined

    images = [image, *more]
    refine = Refinement(min_score=min_score, expand=expand, rerank=rerank, diversity=diversity)
    report_failed_build(index)
    with Index.open(index) as opened:
        num_items = len(opened)
        if num_items == 0:
            raise InputError(
                f"{index} is empty; add images with `featkit embed PHOTOS --out emb` and `featkit"
                f" index emb --out {index}`."
            )
        if open_ and page is None:
            # mkdtemp's folder is private to this user.
            page = Path(tempfile.mkdtemp(prefix="featkit-search-")) / "results.html"
        num_matching = opened.count(where)
        vectors = opened.embedder.embed([*images, *(minus or ())])
        if len(vectors) > 1:
            weights = [1.0] * len(images) + [-1.0] * len(minus or ())
            vectors = combined(vectors, weights)[None]
        hits = opened.read(
            lambda state: _search(opened, state, images[0], vectors, k, where, refine, page)
        )
    if json_:
        print_json([in_json(hit) for hit in hits])
    else:
        if where is not None:
            stdout().print(f"{counted(num_matching, 'image')} of {num_items:,} match.")
        others = [f"minus {each}" for each in minus or ()]
        _print_hits(f"Most similar to {', '.join([*map(str, images), *others])}", hits)
    if page is not None and not json_:
        stdout().print(f"Page: {page}")
    if page is not None and open_:
        _show(page)


def _search(
    opened: "Index",
    state: "IndexState",
    image: Path,
    vectors: "np.ndarray",
    k: int,
    where: str | None,
    refine: "Refinement",
    page: Path | None,
) -> "list[Hit]":
    """Search, and write the page from the same state."""
    (hits,) = state.search(vectors=vectors, k=k, where=where, refine=refine)
    if page is not None:
        from featkit.cli.result_page import write_result_page

        write_result_page(page, opened, image, hits)
    return hits


def _print_hits(title: str, hits: "list[Hit]") -> None:
    rows = [
        [
            rank,
            f"{hit.score:.4f}",
            hit.meaning or "",
            hit.key,
            shown_size(hit),
            shown_metadata(hit),
        ]
        for rank, hit in enumerate(hits, 1)
    ]
    columns = ["", "score", "meaning", "image", "size", "metadata"]
    shown = [name not in ("meaning", "metadata") for name in columns]
    shown[2], shown[-1] = any(hit.meaning for hit in hits), any(hit.metadata for hit in hits)
    print_table(title, list(compress(columns, shown)), [list(compress(row, shown)) for row in rows])
    if hits and hits[0].meaning == "unrelated":
        stdout().print("Nothing close: even the first is unrelated.")


def _show(page: Path) -> None:
    import sys
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        print(f"featkit: no browser was found; open {page} yourself.", file=sys.stderr)
