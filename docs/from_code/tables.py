"""Tables generated from the code: methods, published models, recipes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

from featkit.cli.app import main
from featkit_train.settings import RECIPES
from from_code.markdown import code, prose, table

MODEL_COLUMNS = ("name", "parameters", "width", "patch", "native_size", "weights_from")


def methods_table() -> str:
    """Return the table of `featkit train --list`."""
    commands = "../reference/commands/train.md#featkit-train-"
    rows = [
        (
            f"[`{row['method']}`]({commands}{row['method']})",
            row["needs"],
            row["when"],
            prose(row["paper"]),
        )
        for row in _json("train", "--list")
    ]
    return table(("method", "needs", "use it when", "paper"), rows)


def models_table() -> str:
    """Return one table per family, as in `featkit export --list`."""
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


def recipes_page() -> str:
    """Return each recipe with its opening comment: what it is, how to run it, what to expect."""
    parts = []
    for path in sorted(RECIPES.glob("*.yaml")):
        title, command, expected = read_comment(path)
        block = f"```sh\n{command}\n```"
        parts.append(f"## {path.stem}\n\n{title}\n\n{block}\n\nExpected: {prose(expected)}")
    return "\n\n".join(parts)


def read_comment(path: Path) -> tuple[str, str, str]:
    """The title of a recipe's comment, the command under Run, and the text under Expect."""
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()
    )
    text = "\n".join(line.removeprefix("#").strip() for line in lines)
    title, run, expected = re.split(r"^(?:Run|Expect): *", text, flags=re.MULTILINE)
    # A backslash continues a command; a remark in parentheses or on a line of its own follows.
    command = re.match(r"(?:.*\\\n)*.*", run)
    assert command is not None
    indented = command[0].split("  (")[0].rstrip().replace("\\\n", "\\\n  ")
    expected = expected.partition("\nNumbers:")[0]
    return " ".join(title.split()), indented, " ".join(expected.split())


def _json(*arguments: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*arguments, "--json"]) == 0
    return json.loads(printed.getvalue())


def _linked(source: str) -> str:
    if source.startswith("hf.co/"):
        name = source.removeprefix("hf.co/")
        return f"[{name}](https://huggingface.co/{name})"
    return f"[{source.rsplit('/', 1)[-1]}]({source})"
