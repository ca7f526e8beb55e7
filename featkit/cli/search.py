"""`featkit search`: the pictures of an index nearest to one of yours."""

import json
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featkit.cli.console import print_table, stdout


def search(
    index: Path,
    query: Path,
    /,
    *,
    k: Annotated[int, Parameter(alias="-k")] = 10,
    page: Path | None = None,
    open_: bool = False,
    json_: bool = False,
) -> None:
    """Print the pictures of INDEX nearest to QUERY, best first; the score is the cosine of their vectors.

    Example: featkit search photos.index query.jpg -k 10

    Parameters
    ----------
    index
        An index folder from `featkit index`.
    query
        A picture.
    k
        How many results.
    page
        Write a page of the pictures (one HTML file) there.
    open_
        Show that page in the browser; without --page it is results.html.
    json_
        Print the results as JSON.
    """
    from featkit.index import Index

    with Index.open(index) as opened:
        hits = opened.search(query, k=k)
        if page is not None or open_:
            from featkit.cli.result_page import write_result_page

            page = page or Path("results.html")
            write_result_page(page, opened, query, hits)
    if json_:
        print(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
    else:
        rows = [(rank, f"{hit.score:.3f}", hit.key, f"{hit.width}×{hit.height}") for rank, hit in enumerate(hits, 1)]
        print_table(f"{query} in {index}", ("rank", "score", "key", "pixels"), rows)
        if page is not None:
            stdout().print(f"Page: {page}")
    if open_ and page is not None:
        webbrowser.open(page.resolve().as_uri())
