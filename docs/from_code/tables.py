"""Tables of what the code lists: methods, published models, recipes."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from featkit.cli.app import main
from featkit_train.settings import RECIPES
from from_code.markdown import code, table

MODEL_COLUMNS = ("name", "parameters", "width", "patch", "native_size", "weights_from")


def methods_table() -> str:
    """What `featkit train --list` prints."""
    rows = [
        (
            f"[`{row['method']}`](../reference/commands/train.md#featkit-train-{row['method']})",
            row["needs"],
            row["when"],
        )
        for row in _json("train", "--list")
    ]
    return table(("method", "needs", "use it when"), rows)


def models_table() -> str:
    """What `featkit export --list` prints, one table for each family."""
    families: dict[str, list[Any]] = {}
    for row in _json("export", "--list"):
        families.setdefault(row["name"].split("_")[0], []).append(row)
    parts = []
    for family, rows in families.items():
        cells = [
            (
                code(row["name"]),
                *(str(row[column]) for column in MODEL_COLUMNS[1:-1]),
                _linked(row["weights_from"]),
            )
            for row in rows
        ]
        licenses = sorted({str(row.get("license", row.get("licence"))) for row in rows})  # quoted
        parts.append(
            f"## {family}\n\nLicense of the weights: {', '.join(licenses)}.\n\n"
            + table([column.replace("_", " ") for column in MODEL_COLUMNS], cells)
        )
    return "\n\n".join(parts)


def recipes_table() -> str:
    """Each recipe with the first sentence of the comment that it begins with."""
    rows = []
    for path in sorted(RECIPES.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        title = lines[0].removeprefix("#").strip()
        run = next(line for line in lines if line.startswith("# Run:")).removeprefix("# Run:")
        rows.append((code(path.stem), title, code(run.split("  (")[0].strip(" \\"))))
    return table(("recipe", "what it is", "run it with"), rows)


def _json(*arguments: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*arguments, "--json"]) == 0
    return json.loads(printed.getvalue())


def _linked(source: str) -> str:
    if source.startswith("hf.co/"):
        name = source.removeprefix("hf.co/")
        return f"[{name}](https://huggingface.co/{name})"
    return f"[{source.rsplit('/', 1)[-1]}]({source})"
