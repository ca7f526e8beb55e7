"""`featkit list`: the items of an index, or those that match a filter."""

from pathlib import Path

from featkit.cli.console import print_json, print_table, stdout
from featkit.cli.item_table import in_json, shown_metadata, shown_size
from featkit.cli.options import AsJson, Where
from featkit.extras import need_extra
from featkit.wording import counted


def list_items(
    index: Path,
    /,
    *,
    where: Where = None,
    limit: int = 100,
    offset: int = 0,
    json_: AsJson = False,
) -> None:
    """Print the images of INDEX in the order they were added.

    Example: featkit list photos.index --where "key like '%front%' and width >= 300" --limit 20

    Parameters
    ----------
    index
        A folder from `featkit index`.
    limit
        How many images to print.
    offset
        How many matching images to skip first.
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index

    with Index.open(index) as opened:
        total, items = opened.read(
            lambda state: (state.count(where), state.items(offset, limit, where=where))
        )
    if json_:
        print_json({"total": total, "items": [in_json(item) for item in items]})
        return
    columns = ["id", "image", "size", "metadata"]
    rows = [[item.id, item.key, shown_size(item), shown_metadata(item)] for item in items]
    if not any(item.metadata for item in items):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    if rows:
        print_table("", columns, rows)
    matching = "" if where is None else " that match"
    stdout().print(f"{len(items):,} of {counted(total, 'image')}{matching} shown.")
