"""Parts of pages that are generated from the code each time the documentation is built.

A page asks for one with a comment on a line of its own, `<!-- from code: command embed -->`; the
comment is replaced by Markdown before MyST reads the page. Nothing generated is committed.
"""

from from_code.inserting import insert_generated
from from_code.python_api import plain_docstring

__all__ = ["insert_generated", "plain_docstring"]
