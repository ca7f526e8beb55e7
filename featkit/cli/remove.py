"""`featkit remove`: remove images from an index."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featkit.cli.console import print_json, print_table, stdout
from featkit.cli.item_table import shown_metadata, shown_size
from featkit.cli.options import AsJson, Where
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted, on_one_line

MAX_SHOWN = 20  # images in the table of --dry-run
MAX_UNKNOWN = 5  # keys in the message about those that the index does not have


def remove(
    index: Path,
    /,
    *keys: str,
    where: Where = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json_: AsJson = False,
) -> None:
    """Remove images from INDEX, by their KEYS or by a filter. No image file is deleted.

    Example: featkit remove photos.index objects/mug/mug-1-side.jpg

    Example: featkit remove photos.index --where "folder = 'textures'" --dry-run

    Parameters
    ----------
    index
        A folder from `featkit index`.
    keys
        Keys as `featkit list` prints them.
    dry_run
        Print what would be removed, and change nothing.
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index

    if not keys and where is None:
        raise InputError(
            "featkit remove takes keys or --where, such as --where \"folder = 'old'\"; none was"
            " given."
        )
    with Index.open(index, writable=not dry_run) as opened:
        unknown = [key for key in keys if key not in opened]
        matching = [] if where is None else opened.items(limit=len(opened), where=where)
        items = {item.id: item for item in matching}
        items |= {(item := opened.item_by_key(key)).id: item for key in keys if key not in unknown}
        if not dry_run:
            opened.remove(item.key for item in items.values())
        num_left = len(opened) - (len(items) if dry_run else 0)
    if unknown:
        names = on_one_line(", ".join(unknown[:MAX_UNKNOWN]))
        more = f" and {len(unknown) - MAX_UNKNOWN:,} more" if len(unknown) > MAX_UNKNOWN else ""
        print(f"featkit: {index} has no {names}{more}.", file=sys.stderr)
    if json_:
        removed = [item.key for item in items.values()]
        print_json({"removed": removed, "unknown": unknown, "items": num_left, "dry_run": dry_run})
        return
    if dry_run and items:
        first = [*items.values()][:MAX_SHOWN]
        rows = [[item.key, shown_size(item), shown_metadata(item)] for item in first]
        print_table("Would be removed", ["image", "size", "metadata"], rows)
        if len(items) > MAX_SHOWN:
            stdout().print(f"... and {len(items) - MAX_SHOWN:,} more.")
    done = "would be removed" if dry_run else "removed"
    holds = "would hold" if dry_run else "holds"
    stdout().print(
        f"{counted(len(items), 'image')} {done}; {index} {holds} {counted(num_left, 'image')}."
    )
