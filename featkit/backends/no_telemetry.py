"""Import OpenVINO without its telemetry, since featkit sends nothing that nobody asked for.

`import openvino` makes its model converter's package send an event to Google Analytics from a
forked process and write a client id below ~/intel, unless the user has opted out
(openvino/tools/ovc/__init__.py, openvino_telemetry/main.py, 2026.4). If openvino_telemetry cannot
be imported, OpenVINO uses a stub that does nothing. So the module is hidden during that import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TELEMETRY = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Hide openvino_telemetry during the first import of openvino; restore it afterwards."""
    modules: dict[str, Any] = sys.modules
    before = {TELEMETRY: modules[TELEMETRY]} if TELEMETRY in modules else {}
    modules[TELEMETRY] = None  # makes the import raise ImportError
    try:
        yield
    finally:
        del modules[TELEMETRY]
        modules.update(before)
