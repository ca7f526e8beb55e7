"""Begin an embeddings folder, or continue one: only with the source, model and options it was begun
with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featkit.atomic import TEMPORARY_MARK, explain_os_errors, remove_partials
from featkit.backends import Run
from featkit.embedder import Embedder
from featkit.embeddings.columns import as_text, metadata_columns
from featkit.embeddings.folder import SHARDS, STAMPS, Embeddings
from featkit.embeddings.plan import MODEL_FILE, PLAN_FILE, FolderPlan
from featkit.errors import InputError, Interrupted
from featkit.lock import WriterLock
from featkit.modelfile import copy_model_file
from featkit.sources import Source, has_keys, keys_sha256
from featkit.sources.rows import image_column
from featkit.wording import counted

LOCK_FILE = ".lock"


@contextmanager
def begin_or_continue(
    source: Source, embedder: Embedder, out: Path, *, shard_size: int
) -> Iterator[tuple[Embeddings, Embedder]]:
    """Hold the folder's lock for the block; yield the folder, begun or as an earlier run left it,
    and the embedder with the engine and precision that the folder was begun with.

    InputError if the folder was begun with other work, naming what differs, or holds something
    else. EnvironmentProblem if it cannot be written or another process is writing it. Ctrl-C in the
    block becomes Interrupted with the number of items done.
    """
    _refuse_place(out)
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(out / LOCK_FILE)
    try:
        embedder = _with_begun_run(embedder, out)
        yield _begun(source, embedder, out, shard_size=shard_size), embedder
    except KeyboardInterrupt:
        done = Embeddings.open(out).num_rows if (out / PLAN_FILE).exists() else 0
        raise Interrupted(
            f"Stopped by Ctrl-C with {done:,} of {counted(len(source), 'item')} in {out}; the same"
            " command continues from there."
        ) from None
    finally:
        lock.release()


def _begun(source: Source, embedder: Embedder, out: Path, *, shard_size: int) -> Embeddings:
    """Return the folder with everything that precedes its shards. The plan is written first, so
    that a folder with anything in it has one."""
    plan = FolderPlan(
        source=as_text(source.name),
        num_items=len(source),
        keys_sha256=keys_sha256(source),
        model_name=embedder.manifest.name,
        fingerprint=embedder.fingerprint,
        geometry=embedder.geometry,
        width=embedder.width,
        run=str(embedder.run),
        shard_size=shard_size,
        max_bytes=embedder.limits.max_bytes,
        max_pixels=embedder.limits.max_pixels,
        column=image_column(source),
        skipped=dict(sorted(source.skipped.items())),
    )
    with explain_os_errors(out):
        remove_partials(out)
        if (out / PLAN_FILE).exists():
            folder = Embeddings.open(out)
            # An earlier version may have given the same items other keys.
            if has_keys(source, folder.plan.keys_sha256):
                plan = dataclasses.replace(plan, keys_sha256=folder.plan.keys_sha256)
            _refuse_other_work(folder, plan, source)
        else:
            plan = dataclasses.replace(plan, columns=metadata_columns(source))
            folder = Embeddings.create(out, plan)
        for name in (SHARDS, STAMPS):
            (out / name).mkdir(exist_ok=True)
            remove_partials(out / name)
        if not folder.model_path.exists():
            copy_model_file(embedder.model_path, folder.model_path)
    return folder


def _with_begun_run(embedder: Embedder, out: Path) -> Embedder:
    """Return the embedder with the engine and precision of an existing folder. InputError if the
    embedder was asked for others."""
    if not (out / PLAN_FILE).exists():
        return embedder
    plan = Embeddings.open(out).plan
    begun = Run.parse(plan.run)
    # Another model is refused later, by a message about the model.
    if plan.fingerprint != embedder.fingerprint or begun == embedder.run:
        return embedder
    if not embedder.leaves_open(begun):
        raise InputError(
            f"{out} was begun with {begun}, not {embedder.run}; continue with --backend"
            f" {begun.backend} --precision {begun.precision}, or choose another --out."
        )
    return embedder.with_run(begun)


# Refusals -----------------------------------------------------------------------------------------


def _refuse_place(out: Path) -> None:
    """InputError if `out` is a file, lies below one, or is a folder with other files in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder with --out.")
    parent = next((folder for folder in out.absolute().parents if folder.exists()), None)
    if parent is not None and not parent.is_dir():
        raise InputError(
            f"{out} cannot be made: {parent} is a file; name another folder with --out."
        )
    if out.is_dir() and not (out / PLAN_FILE).exists() and (others := _other_files(out)):
        raise InputError(
            f"{out} is not an embeddings folder and holds {min(others)}; choose a new or an empty"
            " --out."
        )


def _other_files(out: Path) -> list[str]:
    """Return the files in a folder that no earlier run left there before it wrote a plan."""
    return [
        file.name
        for file in out.iterdir()
        if file.name != LOCK_FILE and TEMPORARY_MARK not in file.name
    ]


def _refuse_other_work(folder: Embeddings, plan: FolderPlan, source: Source) -> None:
    """InputError unless the folder was begun for exactly this plan."""
    old, out = folder.plan, folder.path
    if old.fingerprint != plan.fingerprint:
        raise InputError(
            f"{out} was begun with another model, {old.model_name} ({old.fingerprint[:12]}), not"
            f" {plan.model_name} ({plan.fingerprint[:12]}); continue with --model"
            f" {out / MODEL_FILE}, or choose another --out."
        )
    if not _same_place(old.source, plan.source):
        raise InputError(
            f"{out} was begun with the source {old.source}, not {plan.source}; choose another"
            " --out."
        )
    if (old.num_items, old.keys_sha256) != (plan.num_items, plan.keys_sha256):
        raise InputError(
            f"{plan.source} has changed since {out} was begun: it had"
            f" {counted(old.num_items, 'image')} and has {plan.num_items:,}, some of them added,"
            f" removed or renamed.{_now_readable(folder, source)} Embed it as it is now into"
            " another --out and add that to the same index. To finish this folder instead, undo"
            " the change, or repeat its --include and --exclude."
        )
    if old.column and old.column != plan.column:
        raise InputError(
            f"{out} was begun with images from the column {old.column}, not {plan.column};"
            f" continue with --column {old.column}, or choose another --out."
        )
    for name, option in (
        ("shard_size", "--shard-size"),
        ("max_pixels", "--max-pixels"),
        ("max_bytes", "--max-bytes"),
    ):
        before, now = getattr(old, name), getattr(plan, name)
        if before != now:
            raise InputError(
                f"{out} was begun with {option} {before}, not {now}; continue with {option}"
                f" {before}, or choose another --out."
            )
    if old.geometry != plan.geometry or old.width != plan.width:
        raise InputError(
            f"{out} was begun with another geometry or vector width; choose another --out."
        )


def _now_readable(folder: Embeddings, source: Source) -> str:
    """Return a sentence about an archive or folder that could not be read when the work was begun
    and can be read now; "" if no key shows that."""
    keys = {source.key(item) for item in range(len(source))}
    try:
        gone = [key for key, _ in folder.failures()[1] if key not in keys]
    except InputError:  # a damaged shard, which another run would write again
        return ""
    mended = next(
        (key for key in gone if any(other.startswith(key.rstrip("/") + "/") for other in keys)),
        None,
    )
    return "" if mended is None else f" {mended} could not be read then, but its images can be now."


def _same_place(name: str, other: str) -> bool:
    """Return whether two names mean the same source, as `photos`, `./photos/` and its absolute path
    do."""
    return name == other or Path(name).absolute().resolve() == Path(other).absolute().resolve()
