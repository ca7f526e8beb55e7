"""Sphinx's settings for `make docs`: MyST pages, the furo theme, and parts generated from the code.

Nothing in the built pages comes from another host: no fonts, scripts, styles or images
(tests/docs/test_site.py checks the HTML).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from featkit import __version__

sys.path.insert(0, str(Path(__file__).parent))
from from_code import insert_generated, plain_docstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "featkit"
author = "the featkit authors"
copyright = "the featkit authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["from_code/**"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # docstrings use single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"ImageLike": "ImageLike"}  # by its name, not spelled out
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = "featkit"
html_static_path = ["_static"]
html_css_files = ["featkit.css"]
html_copy_source = False
html_show_sphinx = False
html_logo = html_favicon = "../demo/featkit_demo/static/icon.svg"
html_theme_options = {
    "top_of_page_buttons": [],
    # The search page's orange, dark or light enough for text.
    "light_css_variables": {
        "color-brand-primary": "#b93a19",
        "color-brand-content": "#b93a19",
        "color-sidebar-link-text--top-level": "#3c3846",
    },
    "dark_css_variables": {
        "color-brand-primary": "#ff8a65",
        "color-brand-content": "#ff8a65",
        "color-sidebar-link-text--top-level": "#c9c5d0",
    },
}
pygments_style = "friendly"
pygments_dark_style = "native"

# The copy button leaves out prompts and what a command prints.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_copy_empty_lines = False
copybutton_line_continuation_character = "\\"


def setup(app: Sphinx) -> None:
    """Register what writes the generated parts of pages."""
    app.connect("source-read", insert_generated)
    app.connect("autodoc-process-docstring", plain_docstring)
