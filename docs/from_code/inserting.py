"""Replace a page's requests for generated parts."""

from __future__ import annotations

import re
from collections.abc import Callable

from from_code.commands import command_list, command_page
from from_code.http_api import routes_page
from from_code.python_api import module_page
from from_code.tables import methods_table, models_table, recipes_page
from from_code.train_settings import settings_page

GENERATORS: dict[str, Callable[..., str]] = {
    "command": command_page,
    "commands": command_list,
    "methods": methods_table,
    "models": models_table,
    "module": module_page,
    "recipes": recipes_page,
    "routes": routes_page,
    "settings": settings_page,
}
REQUEST = re.compile(r"^<!-- from code: (.+) -->$", re.MULTILINE)


def insert_generated(_app: object, _page: str, source: list[str]) -> None:
    """Sphinx's `source-read`: replace each request in the text of a page, which is source[0]."""
    source[0] = REQUEST.sub(lambda request: _generated(request.group(1)), source[0])


def _generated(request: str) -> str:
    name, *arguments = request.split()
    return GENERATORS[name](*arguments)
