"""The search tab: one gr.HTML whose markup, script and style are the files in static/.

Its script asks the routes of featkit.serve for JSON and thumbnails by integer id; Gradio sees no
image and no path.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC = Path(__file__).with_name("static")
# A module, so that it is loaded once and its names stay its own. The address is taken relative to
# the page.
START = (
    "import(new URL('page/search.js', document.baseURI)).then((search) => search.start(element));"
)


def search_tab() -> None:
    """Add the tab to the gr.Blocks being built."""
    markup = (STATIC / "search.html").read_text(encoding="utf-8")
    gr.HTML(
        html_template=markup, js_on_load=START, apply_default_css=False, elem_classes=["fk-host"]
    )
