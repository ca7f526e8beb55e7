"""`featkit check` and `featkit repair`: whether an index is sound, and what can be repaired."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.cli.promising import report_failed_build
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.folders import is_embeddings, is_index
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.index import Index
    from featkit.index.checking import CheckReport
    from featkit.index.repairing import Origin

MAX_SHOWN = 20  # images that could not be repaired


def check(index: Path, /, *, quiet: Quiet = False, json_: AsJson = False) -> int:
    """Check INDEX: its catalogue, every vector, a sample of thumbnails, and its graph.

    Nothing is changed. The exit code is 1 if something is wrong.

    Example: featkit check photos.index

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`.
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index

    report_failed_build(index)
    with Index.open(index, check_sample=False) as opened:
        report = _checked(opened, quiet=quiet or json_)
    if json_:
        print_json({"index": str(index), **_in_json(report)})
    else:
        _print_report(report, index)
    return 1 if report.problems else 0


def repair(
    index: Path,
    /,
    *,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> int:
    """Repair INDEX as far as possible, and list what is left.

    With --from, damaged and lost vectors are restored in their places: from an embeddings folder,
    exactly as they were, or by embedding their images again. Each is checked to belong to the same
    image. What cannot be restored is listed with the reason and stays, for another --from.

    Without --from, images with a damaged vector are removed, and `featkit sync` embeds them again;
    those whose vectors a truncated file has lost are among them.

    A damaged graph is built again. The exit code is 1 if something is still wrong.

    Example: featkit repair photos.index --from emb/

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`.
    from_
        The embeddings folder that the index was made of, or its images: whatever `featkit sync`
        takes.
    """
    need_extra("cpu", "onnxruntime", "faiss")
    from featkit.index import Index
    from featkit.index.repairing import fill_truncated
    from featkit.index.repairing import repair as repair_index

    report_failed_build(index)
    origin = None if from_ is None else _origin(from_, index)
    done = fill_truncated(index, may_be_missing=origin is not None) if is_index(index) else []
    with Index.open(index, writable=True, check_sample=False) as opened:
        checked = _checked(opened, quiet=quiet or json_)
        num_damaged = len(checked.damaged)
        with ProgressReporter(
            "restoring", total=num_damaged, unit="vectors", quiet=quiet or json_ or origin is None
        ) as progress:
            repaired = repair_index(opened, checked, origin=origin, on_progress=progress)
        done += repaired.done
        report = _checked(opened, quiet=True)
    if json_:
        left = [{"key": key, "why": why} for key, why in repaired.left.items()]
        print_json({"index": str(index), "done": done, "left": left, **_in_json(report)})
    else:
        for line in done:
            stdout().print(f"{line[0].upper()}{line[1:]}.")
        if repaired.left:
            rows = [*repaired.left.items()]
            print_table("Not restored", ("image", "why"), rows[:MAX_SHOWN], whole_lines=True)
            if len(rows) > MAX_SHOWN:
                stdout().print(f"... and {len(rows) - MAX_SHOWN:,} more; --json lists all.")
        _print_report(report, index)
    return 1 if report.problems else 0


def _origin(path: Path, index: Path) -> Origin:
    """Open an embeddings folder or a source of images. InputError for an index."""
    from featkit.embeddings import Embeddings
    from featkit.sources import open_source
    from featkit.sources.selection import Selection

    if is_embeddings(path):
        return Embeddings.open(path)
    if is_index(path):
        raise InputError(
            f"{path} is an index; name the embeddings folder that {index} was made of, or its"
            " images."
        )
    return open_source(path, selection=Selection(own=[index]))


def _checked(index: Index, *, quiet: bool) -> CheckReport:
    from featkit.index.checking import check as check_index

    with ProgressReporter("checking", total=len(index), unit="vectors", quiet=quiet) as progress:
        return check_index(index, on_progress=progress)


def _in_json(report: CheckReport) -> dict[str, object]:
    return {
        "items": report.num_items,
        "sampled_thumbnails": report.num_sampled,
        "problems": [asdict(problem) for problem in report.problems],
    }


def _print_report(report: CheckReport, index: Path) -> None:
    for problem in report.problems:
        stdout().print(problem.sentence[0].upper() + problem.sentence[1:])
        if problem.keys:
            print_table("", ("",), [(key,) for key in problem.keys])
        if problem.num_keys > len(problem.keys):
            stdout().print(f"... and {problem.num_keys - len(problem.keys):,} more.")
    if not report.problems:
        stdout().print(
            f"{index} is sound: {counted(report.num_items, 'vector')} and"
            f" {counted(report.num_sampled, 'sampled thumbnail')} are as they should be."
        )
