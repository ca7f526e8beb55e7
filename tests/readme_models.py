"""The README's table of models, made of what `featkit export --list --json` prints.

python -m tests.readme_models        # write it into README.md
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from featkit.cli.app import main

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- models: python -m tests.readme_models -->\n", "<!-- end of models -->\n"
COLUMNS = ("name", "parameters", "width", "patch", "native_size", "license", "weights_from")


def models_table() -> str:
    """The published models as a Markdown table."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["export", "--list", "--json"]) == 0
    lines = [
        " | ".join(column.replace("_", " ") for column in COLUMNS),
        "|".join("---" for _ in COLUMNS),
    ]
    for row in json.loads(printed.getvalue()):
        cells = [
            f"`{row['name']}`",
            *(row[column] for column in COLUMNS[1:-1]),
            _linked(row["weights_from"]),
        ]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def in_readme(text: str) -> str:
    """The table as it stands in the README's text."""
    return text.partition(BEGIN)[2].partition(END)[0]


def _linked(source: str) -> str:
    if source.startswith("hf.co/"):
        return f"[{source.removeprefix('hf.co/')}](https://huggingface.co/{source.removeprefix('hf.co/')})"
    return f"[{source.rsplit('/', 1)[-1]}]({source})"


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    README.write_text(
        before.replace(BEGIN + in_readme(before), BEGIN + models_table(), 1), encoding="utf-8"
    )
