"""`featkit evaluate all`: every evaluation of one or several models, as one table."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.evaluate.common import (
    last_of,
    limited,
    note_if,
    open_several,
    print_failures,
    refuse_none,
    say,
)
from featkit.cli.evaluated_model import open_model
from featkit.cli.options import AsJson, Limit, Quiet
from featkit.cli.selecting import SelectionFlags
from featkit.errors import EnvironmentProblem, InputError
from featkit.extras import need_extra
from featkit.models import DEFAULT_MODEL
from featkit.wording import first_line, on_one_line

if TYPE_CHECKING:
    from featkit.evaluate.all import Material
    from featkit.evaluate.all_report import AllReport
    from featkit.evaluate.all_table import Table
    from featkit.evaluate.embedding import ImageModel

WIDEST_NAME = 16  # characters of a column's name on one line
WIDEST_LABEL = 24
INDENT, GAP = 2, 2


def all_(
    *,
    train: Path | None = None,
    test: Path | None = None,
    retrieval: Annotated[list[Path] | None, Parameter(negative=(), consume_multiple=True)] = None,
    copies: Path | None = None,
    model: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    label: str = "label",
    group: str = "label",
    k: int = 20,
    linear: bool = True,
    seed: int = 0,
    last: int | None = None,
    limit: Limit = None,
    markdown: bool = False,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure one or several models by all evaluations, and print one table.

    It has the figures of `featkit evaluate retrieval`, `knn`, `linear` and `copies`, with 95 %
    intervals and next to baselines. Whatever you do not pass is left out. A model embeds each
    source once.

    Example: featkit evaluate all --train train.tar --test test.parquet --model m.onnx

    Example: featkit evaluate all --retrieval photos/ --group folder --copies photos/ --model m.onnx
    --model run/

    Parameters
    ----------
    train
        Labeled images for kNN and the linear classifier; pass --test as well.
    test
        The labeled images that kNN and the linear classifier have to classify.
    retrieval
        Images that are searched by each other: a folder, a .tar, a .parquet, or anything else that
        `featkit embed` takes. Takes several, and can be repeated.
    copies
        Images that are searched by edited copies of themselves. Needs no labels.
    model
        A model file; a run folder of `featkit train` or a Hugging Face folder, which run in torch;
        or a published backbone, such as dinov2_vits14 or timm:NAME. Takes several, and can be
        repeated, to compare models. The default is featkit-tiny, which ships with featkit.
    label
        The label column, in both --train and --test. `label` also means a tar's .cls members, or
        the name of the folder that holds the image.
    group
        The column of --retrieval whose equal values match; the default is as for --label.
    k
        How many neighbors vote.
    linear
        Fit linear classifiers, which takes minutes for tens of thousands of images.
    seed
        Seed of the random edits, and of the images that the linear classifier holds out.
    last
        Use only the last images of --copies, at most this many.
    markdown
        Print the table in Markdown, for a model card.
    """
    if k < 1:
        raise InputError(f"--k is {k}; it has to be 1 or more.")
    refuse_none("--last", last)
    refuse_none("--limit", limit)
    if markdown and json_:
        raise InputError("--markdown and --json are two formats; choose one.")
    quiet = quiet or json_
    material = _open_material(train, test, retrieval or [], copies, last, limit, select)
    lacking = _lacking_for_linear() if linear and train is not None else None
    models = _open_models(model or [DEFAULT_MODEL], quiet=quiet)
    from featkit.evaluate.all import Choices, evaluate_all

    report = evaluate_all(
        models,
        material,
        choices=Choices(
            label=label, group=group, k=k, linear=linear and lacking is None, seed=seed
        ),
        progress=lambda what, count: ProgressReporter(what, total=count, quiet=quiet),
        on_step=lambda step: None if quiet else print(step, file=sys.stderr, flush=True),
    )
    if lacking is not None and (json_ or markdown):
        print(*_not_measured(report, lacking), file=sys.stderr)
    if json_:
        print_json(asdict(report))
    elif markdown:
        from featkit.evaluate.all_table import markdown as in_markdown

        say(in_markdown(report))
    else:
        _show(report)
        say(*_not_measured(report, lacking))
        _print_failures(report)


def _open_material(
    train: Path | None,
    test: Path | None,
    retrieval: Sequence[Path],
    copies: Path | None,
    last: int | None,
    limit: int | None,
    flags: SelectionFlags | None,
) -> "Material":
    """Open each path once, so that its images are embedded once."""
    if last is not None and copies is None:
        raise InputError("--last chooses images of --copies; pass --copies as well.")
    given = [path for path in (train, test, *retrieval, copies) if path is not None]
    paths = list(dict.fromkeys(given))
    whole = dict(zip(paths, open_several(paths, flags=flags), strict=True))
    opened = {path: limited(source, limit) for path, source in whole.items()}
    from featkit.evaluate.all import Material

    return Material(
        train=None if train is None else opened[train],
        test=None if test is None else opened[test],
        retrieval=[opened[path] for path in dict.fromkeys(retrieval)],
        copies=None if copies is None else limited(last_of(whole[copies], last), limit),
    )


def _open_models(specs: Sequence[str], *, quiet: bool) -> dict[str, "ImageModel"]:
    """Open models by the name in their manifest, or as typed if several have the same name."""
    twice = [spec for spec in dict.fromkeys(specs) if specs.count(spec) > 1]
    if twice:
        raise InputError(f"--model {twice[0]} is given twice; name each model once.")
    opened = {spec: open_model(spec, quiet=quiet) for spec in specs}
    names = [model.manifest.name for model in opened.values()]
    return {
        name if names.count(name) == 1 else spec: model
        for name, (spec, model) in zip(names, opened.items(), strict=True)
    }


def _lacking_for_linear() -> str | None:
    """Return why no linear classifier can be fitted, or None."""
    try:
        need_extra("evaluate", "sklearn")
    except EnvironmentProblem as error:
        return first_line(error)
    return None


def _not_measured(report: "AllReport", lacking: str | None) -> list[str]:
    """Return a line on the evaluations that were left out, if any was."""
    without = []
    if not report.sources["retrieval"]:
        without.append("retrieval (no --retrieval)")
    if not report.sources["train"]:
        without.append("kNN and linear accuracy (no --train and --test)")
    elif not report.linear:
        without.append(f"linear accuracy ({lacking or '--no-linear'})")
    if not report.sources["copies"]:
        without.append("copies (no --copies)")
    return note_if(len(without), f"Not measured: {', '.join(without)}.")


def _show(report: "AllReport") -> None:
    """Print the table and its notes, in several parts if the terminal is narrow."""
    from featkit.evaluate.all_table import BEST, NOISE, NOT_BEATEN, notes, table_of

    table = table_of(report)
    for number, columns in enumerate(_parts(table, stdout().width)):
        if number:
            say("")
        lines: list[tuple[str, ...]] = []
        for data, score, cells in table.rows:
            chosen = [cells[column] for column in columns]
            if any(cell.value for cell in chosen):
                lines.append((data, *(f"{cell.value} {cell.mark}".strip() for cell in chosen)))
                lines.append((f"{' ' * INDENT}{score}", *(cell.interval for cell in chosen)))
        print_table("", ("", *(_folded(table.columns[column]) for column in columns)), lines)
    marks = {cell.mark for _, _, cells in table.rows for cell in cells}
    meaning = {
        BEST: "the best model",
        NOT_BEATEN: "a baseline that no model beats",
        NOISE: "within noise, since the interval includes 0",
    }
    shown = [f"{mark} {text}" for mark, text in meaning.items() if mark in marks]
    say(*notes(report), *note_if(len(shown), f"Marks: {'; '.join(shown)}."))


def _parts(table: "Table", width: int) -> Iterator[list[int]]:
    """Yield the columns of parts of a table that each fit `width` characters, in order."""
    labels = [max(len(data), len(score) + INDENT) for data, score, _ in table.rows]
    room = width - min(max(labels), WIDEST_LABEL)
    part: list[int] = []
    taken = 0
    for column, name in enumerate(table.columns):
        texts = [*_folded(name).split("\n"), *(cells[column].interval for *_, cells in table.rows)]
        needed = GAP + max(map(len, texts))
        if part and taken + needed > room:
            yield part
            part, taken = [], 0
        part.append(column)
        taken += needed
    yield part


def _folded(name: str) -> str:
    """Return a column's name on as many lines as it needs."""
    return "\n".join(wrap(on_one_line(name), WIDEST_NAME))


def _print_failures(report: "AllReport") -> None:
    """Print the first of the images that were left out, each once."""
    print_failures(
        [(key, reason) for _, key, reason in report.failures],
        [report.names[source] for source, _, _ in report.failures],
    )
