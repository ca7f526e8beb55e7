"""What a command says when the extra it needs is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from featkit.errors import EnvironmentProblem


def need_extra(extra: str, *modules: str) -> None:
    """EnvironmentProblem with the line that helps, when one of `modules` is not installed. Imports none of them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise EnvironmentProblem(
            f"{', '.join(missing)} is not installed; this command needs the extra: pip install 'featkit[{extra}]'."
        )
