"""Write the results of a search as one HTML file with its images inside, to look at or to share.

The page loads nothing and runs no script, and its Content-Security-Policy makes the browser enforce
this. Image names are escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from featkit.atomic import write_text
from featkit.images import THUMBNAIL_SIDE, load, thumbnail_jpeg
from featkit.index import Hit, Index
from featkit.wording import counted, on_one_line

STYLE = """
:root {
  --ground: #f7f4ef; --panel: #fff; --ink: #201c2b; --quiet: #6d6678; --line: #e4ddd3;
  --accent: #c23f21; --mat: #efe9e0;
  --shadow: 0 1px 2px rgb(50 30 20 / 7%), 0 8px 24px rgb(50 30 20 / 7%);
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14121a; --panel: #1e1b26; --ink: #f3efe9; --quiet: #a59db3; --line: #342f40;
    --accent: #ff7d58; --mat: #17151d;
    --shadow: 0 1px 2px rgb(0 0 0 / 35%), 0 8px 24px rgb(0 0 0 / 30%);
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--ground); color: var(--ink); max-width: 1440px; margin: 0 auto;
  padding: 2.5rem clamp(1rem, 4vw, 3.5rem);
  font: 15px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto,
    "Noto Sans", Ubuntu, sans-serif;
}
header { display: flex; gap: 1.5rem; align-items: center; margin-bottom: 2.25rem; }
header img {
  width: 8.5rem; height: 8.5rem; object-fit: cover; border-radius: 18px; flex: none;
  border: 4px solid var(--panel); box-shadow: var(--shadow);
}
h1 { font-size: clamp(1.25rem, 3vw, 1.75rem); line-height: 1.2; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
header p { color: var(--quiet); margin-top: .35rem; overflow-wrap: anywhere; }
ol { list-style: none; padding: 0; display: grid;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1.1rem; }
li {
  background: var(--panel); border: 1px solid var(--line); border-radius: 16px; overflow: hidden;
  box-shadow: var(--shadow);
  display: flex; flex-direction: column;
}
.image {
  position: relative; aspect-ratio: 4 / 3; background: var(--mat); display: grid;
  place-items: center; color: var(--quiet);
}
.image img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.words { padding: .75rem .9rem .85rem; display: grid; gap: .15rem; }
.line { display: flex; justify-content: space-between; color: var(--quiet);
  font-variant-numeric: tabular-nums; }
.key { font-weight: 600; overflow-wrap: anywhere; line-height: 1.35; }
.score { color: var(--accent); font-weight: 700; }
.about { color: var(--quiet); font-size: .82rem; overflow-wrap: anywhere; }
.bar { height: 3px; border-radius: 2px; background: var(--line); margin: .3rem 0; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--accent); }
.none { color: var(--quiet); padding: 3rem 0; text-align: center; }
footer { color: var(--quiet); font-size: .82rem; margin-top: 2.5rem; }
@media (max-width: 560px) {
  header { align-items: flex-start; gap: 1rem; }
  header img { width: 5.5rem; height: 5.5rem; border-radius: 14px; }
  ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .7rem; }
  .words { padding: .6rem .65rem .7rem; font-size: .85rem; }
}
@media print { body { padding: 0; } li { box-shadow: none; break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<img src="{query}" alt="The image searched with">
<div><h1>Most similar to {name}</h1><p>{counts}</p></div>
</header>
{results}
<footer>The score is the cosine similarity of two images' vectors by {model}: 1 for equal vectors,
0 for unrelated ones.</footer>
</body>
</html>
"""

CARD = """<li>
<div class="image">{image}</div>
<div class="words">
<div class="line"><span>{rank}</span><span class="score">{score:.3f}</span></div>
<div class="bar"><i style="width:{percent:.1f}%"></i></div>
<div class="key">{key}</div>
<div class="about">{about}</div>
</div>
</li>"""


def write_result_page(path: Path, index: Index, query: Path, hits: Sequence[Hit]) -> None:
    """Write the page to `path` atomically. Raises InputError if the query cannot be decoded."""
    query_jpeg = thumbnail_jpeg(load(query, shorter_side=THUMBNAIL_SIDE).pixels)
    cards = "\n".join(_card(rank, hit, index.thumbnail(hit.id)) for rank, hit in enumerate(hits, 1))
    name, index_name = on_one_line(query.name), on_one_line(index.path.name)
    text = PAGE.format(
        title=html.escape(f"{name} in {index_name}"),
        style=STYLE,
        query=_inline(query_jpeg),
        name=html.escape(name),
        counts=html.escape(f"{len(hits):,} of {counted(len(index), 'image')} in {index_name}"),
        results=(
            f"<ol>\n{cards}\n</ol>" if hits else '<p class="none">The index has no images yet.</p>'
        ),
        model=html.escape(index.model_name),
    )
    write_text(path, text)


def _card(rank: int, hit: Hit, thumbnail: bytes | None) -> str:
    key = html.escape(on_one_line(hit.key))
    size = [f"{hit.width}×{hit.height}"] if hit.width and hit.height else []
    return CARD.format(
        image=(
            f'<img src="{_inline(thumbnail)}" alt="{key}" loading="lazy">'
            if thumbnail
            else "no thumbnail"
        ),
        rank=rank,
        # A long name may break here. Neither character occurs in an HTML entity.
        key=key.replace("/", "/<wbr>").replace("_", "_<wbr>"),
        score=hit.score,
        percent=100 * min(max(hit.score, 0.0), 1.0),
        about=html.escape(
            " · ".join([*size, *(f"{name} {value}" for name, value in hit.metadata.items())])
        ),
    )


def _inline(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
