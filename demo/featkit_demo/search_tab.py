"""The search tab: one gr.HTML component with the markup, script and style in static/.

Its script requests JSON and thumbnails, by integer id, from the routes of featkit.serve. Gradio
never sees an image or a path.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).with_name("static")
# A module loads once and has its own namespace. Its address is relative to the page, since a proxy
# may serve the page below another path.
START = (
    "import(new URL('page/search.js', document.baseURI)).then((search) => search.start(element));"
)


def search_tab() -> None:
    """Add the tab to the gr.Blocks under construction."""
    markup = (STATIC / "search.html").read_text(encoding="utf-8")
    gr.HTML(
        html_template=markup, js_on_load=START, apply_default_css=False, elem_classes=["fk-host"]
    )
