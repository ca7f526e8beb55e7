"""The results of a search as one HTML file with its pictures inside, for looking at and for sending along."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from featkit.atomic import write_text
from featkit.images import load, thumbnail_jpeg
from featkit.index import Hit, Index

STYLE = """
:root { color-scheme: light dark; --ground: #f6f6f4; --card: #fff; --ink: #1c1d1f; --quiet: #6b6f76; --line: #e3e3df; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #131416; --card: #1d1f22; --ink: #ececea; --quiet: #9a9fa7; --line: #2c2f34; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 4rem); background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
header { display: flex; gap: 1.25rem; align-items: center; margin-bottom: 2rem; }
header img { width: 7rem; height: 7rem; object-fit: cover; border-radius: 12px; }
h1 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }
p, figcaption { color: var(--quiet); margin: 0; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
figure img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; }
figcaption { padding: .6rem .8rem; display: flex; justify-content: space-between; gap: .5rem; font-size: .85rem; }
figcaption span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
b { color: var(--ink); font-variant-numeric: tabular-nums; }
"""


def write_result_page(path: Path, index: Index, query: Path, hits: Sequence[Hit]) -> None:
    """Write the page. The query is decoded as any picture is; names are escaped, nothing is loaded from elsewhere."""
    shown = thumbnail_jpeg(load(query, shorter_side=256).pixels)
    cards = "\n".join(_card(hit, index.thumbnail(hit.id)) for hit in hits)
    title = html.escape(query.name)
    write_text(
        path,
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title} in {html.escape(index.path.name)}</title><style>{STYLE}</style></head>\n<body>"
        f"<header><img src='{_inline(shown)}' alt='the query'><div><h1>{title}</h1>"
        f"<p>the {len(hits)} nearest of {len(index):,} pictures in {html.escape(index.path.name)}</p></div></header>\n"
        f"<main>{cards}</main></body></html>\n",
    )


def _card(hit: Hit, thumbnail: bytes | None) -> str:
    name = html.escape(hit.key)
    picture = f"<img src='{_inline(thumbnail)}' alt='{name}' loading='lazy'>" if thumbnail is not None else ""
    return f"<figure>{picture}<figcaption><span title='{name}'>{name}</span><b>{hit.score:.3f}</b></figcaption></figure>"


def _inline(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
