"""`featkit sync`: keep an index equal to a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featkit.cli.calibrate import measure_if_due
from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.options import AsJson, Quiet, Rehash, Retry
from featkit.cli.outlook import before_sync
from featkit.cli.promising import (
    BuildOn,
    Memory,
    Recall,
    check_build_on,
    keep_promise,
    promise_from,
    report_failed_build,
)
from featkit.cli.selecting import SelectionFlags, selection_of
from featkit.errors import FeatkitError, InputError, Interrupted
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.index.approximate.planning import Promise
    from featkit.syncing import SyncOptions, SyncReport

Flag = Annotated[bool, Parameter(negative="")]
MAX_SHOWN = 20  # images of each kind that --dry-run lists


def sync(
    photos: Path,
    index: Path,
    /,
    *,
    model: Path | None = None,
    dry_run: Flag = False,
    keep_missing: Flag = False,
    remove_many: Flag = False,
    new_source: Flag = False,
    rehash: Rehash = False,
    retry: Retry = False,
    gps: Flag = False,
    watch: Flag = False,
    threads: int | None = None,
    memory: Memory = None,
    recall: Recall = None,
    build_on: BuildOn = "auto",
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Make INDEX equal to PHOTOS: new, changed, moved and deleted images in one command.

    Run it again whenever the images have changed, for example from cron: what is unchanged is not
    read. An image that was moved or renamed is not embedded again, nor is a copy of another. If the
    command is stopped, even killed, run it again to continue. The index can be searched meanwhile.

    Example: featkit sync images/ photos.index

    Parameters
    ----------
    photos
        Whatever `featkit embed` takes: a folder of images, a .tar, Parquet files, a list of paths.
    index
        The index folder, which is created if it does not exist.
    model
        A model file from `featkit export` for a new index. The default is featkit-tiny, which ships
        with featkit.
    dry_run
        Print what would be done, and change nothing.
    keep_missing
        Do not remove images that are gone.
    remove_many
        Remove images that are gone even if they are more than half of the index, which otherwise is
        refused: perhaps a disk is not mounted.
    new_source
        Allow another PHOTOS than the index was made of, for example after the folder was moved.
    gps
        Also record where photographs were taken, as latitude and longitude.
    watch
        Keep running, and follow changes of the folder a moment after they happen.
    threads
        Threads that decode and embed. The default is one per available CPU, or fewer if memory is
        limited.
    """
    need_extra("cpu", "onnxruntime", "faiss")
    from featkit.syncing import SyncOptions

    options = SyncOptions(
        selection=selection_of(select),
        dry_run=dry_run,
        keep_missing=keep_missing,
        remove_many=remove_many,
        new_source=new_source,
        rehash=rehash,
        retry=retry,
        gps=gps,
        workers=threads,
        background=False,
    )
    check_build_on(build_on)
    promise = promise_from(memory, recall)
    if watch:
        _watch(photos, index, model, options, promise, build_on, quiet=quiet, json_=json_)
        return
    report = _run(photos, index, model, options, promise, quiet=quiet or json_)
    _print_report(report, index, json_=json_)
    if not dry_run:
        _keep_up(index, promise, build_on, quiet=quiet or json_)


def _watch(
    photos: Path,
    index: Path,
    model: Path | None,
    options: SyncOptions,
    promise: Promise | None,
    build_on: BuildOn,
    *,
    quiet: bool,
    json_: bool,
) -> None:
    """Sync now and after each change. A later failure is reported, and the next change tried."""
    need_extra("watch", "watchfiles")
    from featkit.syncing.watching import changes_of

    if not photos.exists():
        raise InputError(f"{photos} does not exist; name a folder of images.")
    is_first = True
    for _ in changes_of(photos, own=index):
        try:
            silent = quiet or json_ or not is_first
            report = _run(photos, index, model, options, promise, quiet=silent)
            _keep_up(index, promise if is_first else None, build_on, quiet=silent, builds=is_first)
            options = replace(options, background=True)
        except Interrupted:
            raise
        except FeatkitError as error:
            if is_first:
                raise
            print(f"featkit: {error}", file=sys.stderr, flush=True)
            continue
        if is_first or report.changes:
            _print_report(report, index, json_=json_)
        if is_first and not quiet:
            print(f"Watching {photos} (stop with Ctrl-C)", file=sys.stderr, flush=True)
        is_first = False


def _run(
    photos: Path,
    index: Path,
    model: Path | None,
    options: SyncOptions,
    promise: Promise | None,
    *,
    quiet: bool,
) -> SyncReport:
    from featkit.syncing import sync

    def progress(label: str, total: int) -> AbstractContextManager[Callable[[int, int], None]]:
        return ProgressReporter(label, total=total, quiet=quiet)

    report = sync(
        photos,
        index,
        model=model,
        options=options,
        progress=progress,
        before=partial(before_sync, index, model, promise, quiet=quiet),
    )
    if options.dry_run and not quiet:
        _print_changes(report)
    return report


def _keep_up(
    index: Path,
    promise: Promise | None,
    build_on: BuildOn,
    *,
    quiet: bool,
    builds: bool = True,
) -> None:
    """Measure what the changed index needs, and build it unless that is left to the background."""
    from featkit.index import Index

    with Index.open(index) as opened:
        measure_if_due(opened, quiet=quiet)
        if builds:
            keep_promise(opened, promise, build_on=build_on, quiet=quiet)
        else:
            report_failed_build(index)


def _print_report(report: SyncReport, index: Path, *, json_: bool) -> None:
    from featkit.sources.selection import skipped_in_words

    if json_:
        print_json(_in_json(report, index))
        return
    if report.failures:
        print_table("Without an embedding", ("image", "why"), report.failures)
    if report.num_failed > len(report.failures):
        stdout().print(
            f"{counted(report.num_failed, 'image')} in all without an embedding; they are tried"
            " again when their files change, or with --retry."
        )
    for line in (*report.notes, skipped_in_words(report.skipped)):
        if line is not None:
            stdout().print(line)
    stdout().print(
        f"{_in_words(report)}; {index} holds {counted(report.num_indexed, 'image')}."
        f" {report.seconds:,.1f} s."
    )
    if report.num_missing:
        stdout().print(f"Kept {counted(report.num_missing, 'image')} that are missing now.")


def _in_words(report: SyncReport) -> str:
    """Return the counts that are not 0."""
    counts = [
        (report.num_new, "new"),
        (report.num_changed, "changed"),
        (report.num_moved, "moved"),
        (report.num_copied, "the same as another"),
        (report.num_described, "with other metadata"),
        (report.num_removed, "gone"),
    ]
    parts = [f"{count:,} {words}" for count, words in counts if count]
    return f"Of {counted(report.num_items, 'image')}: {', '.join(parts)}" if parts else "No change"


def _print_changes(report: SyncReport) -> None:
    changes = report.changes
    kinds: list[tuple[str, list[str]]] = [
        ("New", changes.new),
        ("Changed", changes.changed),
        ("Moved", [f"{old} → {new}" for new, old in changes.moved.items()]),
        ("Same as another", [f"{key} = {other}" for key, other in changes.copies.items()]),
        ("With other metadata", changes.described),
        ("Gone", changes.gone),
    ]
    for title, keys in kinds:
        if keys:
            print_table(f"{title} ({len(keys):,})", ("",), [(key,) for key in keys[:MAX_SHOWN]])
        if len(keys) > MAX_SHOWN:
            stdout().print(f"... and {len(keys) - MAX_SHOWN:,} more.")


def _in_json(report: SyncReport, index: Path) -> dict[str, Any]:
    changes = asdict(report.changes)
    changes.pop("digests")
    return {
        "index": str(index),
        "items": report.num_items,
        "indexed": report.num_indexed,
        "new": report.num_new,
        "changed": report.num_changed,
        "moved": report.num_moved,
        "copies": report.num_copied,
        "redescribed": report.num_described,
        "removed": report.num_removed,
        "missing": report.num_missing,
        "failed": report.num_failed,
        "failures": [{"key": key, "error": error} for key, error in report.failures],
        "skipped": dict(report.skipped),
        "changes": changes,
        "seconds": round(report.seconds, 3),
    }
