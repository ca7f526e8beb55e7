"""Optional dependencies: report a missing one with the pip command that installs it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from featkit.errors import EnvironmentProblem


def need_extra(extra: str, *modules: str, engines: Sequence[str] = ()) -> None:
    """Check that optional modules are installed, without importing them.

    modules: from the extra `extra`. engines: from the extra `cpu`, or `gpu` instead of it.
    Raises EnvironmentProblem with the pip command if any is missing.
    """
    missing = [module for module in (*engines, *modules) if find_spec(module) is None]
    if missing:
        lacks_engine = not set(engines).isdisjoint(missing)
        needed = f"cpu,{extra}" if lacks_engine else extra
        instead = (
            f" (or 'featkit[{needed.replace('cpu', 'gpu')}]')" if needed.startswith("cpu") else ""
        )
        raise EnvironmentProblem(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"this command needs the extra: pip install 'featkit[{needed}]'{instead}."
        )
