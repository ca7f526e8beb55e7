"""The codes that a stopped build has saved, to be continued by the next one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featkit.atomic import replace_file, write_text
from featkit.index.approximate.codes import read_partial, write_codes

PARTIAL, PARTIAL_RECORD = "building.faiss", "building.json"


class Partial:
    """The codes that an interrupted build has saved."""

    def __init__(self, folder: Path, name: str) -> None:
        self._codes, self._record = folder / PARTIAL, folder / PARTIAL_RECORD
        self._name = name

    def read(self) -> tuple[Any | None, int]:
        """Return the saved codes and how many vectors they are of; (None, 0) without ours."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["build"] != self._name:
                return None, 0
            index = read_partial(self._codes)
            return (index, index.ntotal) if index.ntotal == record["vectors"] else (None, 0)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None, 0

    def write(self, index: Any) -> None:
        """Save codes. The record comes last, and names the build and the number of vectors."""
        self._record.unlink(missing_ok=True)
        with replace_file(self._codes) as temporary:
            write_codes(temporary, index)
        write_text(self._record, json.dumps({"build": self._name, "vectors": int(index.ntotal)}))

    def remove(self) -> None:
        """Remove what was saved."""
        for file in (self._record, self._codes):
            file.unlink(missing_ok=True)
