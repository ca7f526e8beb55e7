"""The promise of an index about its searches, and the building of codes that keeps it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featkit.index.approximate.building import Progress, compact
from featkit.index.approximate.generation import FOLDER, SETTING, Generation
from featkit.index.approximate.on_gpu import BuildOn
from featkit.index.approximate.planning import PROMISE, REBUILD_SHARE, Promise, SearchPlan
from featkit.index.builders import FAILURE_FILE
from featkit.index.index import Index
from featkit.index.reclaiming import DeadRows, reclaim

RECLAIMING = "reclaiming the space of removed images"
FEW_OUTSIDE = 20_000  # rows that are scanned in about a millisecond


def promise_of(index: Index) -> Promise | None:
    """Return the promise that an index was given, if it was."""
    return Promise.of(index.read(lambda state: state.catalogue.settings()))


def give_promise(index: Index, promise: Promise) -> None:
    """Store a promise, which later calls of `keep_promise` keep."""
    index_id = index.read(lambda state: state.vectors.key.index_id)
    index.publish(index_id, {PROMISE: promise.to_json()})


def keep_promise(
    index: Index,
    *,
    build_on: BuildOn = "auto",
    on_plan: Callable[[SearchPlan], None] = lambda _plan: None,
    on_progress: Progress = lambda _done, _total: None,
    on_step: Callable[[str], None] = lambda _step: None,
) -> Generation | None:
    """Build the codes of an index if its promise asks for other or newer ones; return them.

    If many rows of the vectors file belong to removed items, they are reclaimed first. build_on: as
    for `compact`. on_plan: called with the plan if codes are built. Raises what `compact` and
    `reclaim` raise.
    """
    promise = promise_of(index)
    if promise is None:
        return None
    if DeadRows.of(index).are_many:
        on_step(RECLAIMING)
        reclaim(index)
    generation: Generation | None = None
    if (plan := _plan_due(index, promise)) is not None:
        assert plan.kind is not None
        on_plan(plan)
        generation = compact(
            index,
            kind=plan.kind,
            target=promise.recall,
            build_on=build_on,
            on_progress=on_progress,
            on_step=on_step,
        )
    (index.path / FOLDER / FAILURE_FILE).unlink(missing_ok=True)
    return generation


def is_due(index: Index) -> bool:
    """Return whether `keep_promise` has anything to do. InputError if it cannot be kept."""
    promise = promise_of(index)
    if promise is None:
        return False
    return DeadRows.of(index).are_many or _plan_due(index, promise) is not None


def _plan_due(index: Index, promise: Promise) -> SearchPlan | None:
    """Return the plan of the codes to build, if there are any."""
    plan = promise.plan(len(index), index.width)
    return plan if plan.kind is not None and _are_codes_due(index, plan, promise) else None


def _are_codes_due(index: Index, plan: SearchPlan, promise: Promise) -> bool:
    """Return whether the codes are missing, of another kind, or of too few of the rows."""
    text = index.read(lambda state: state.catalogue.settings().get(SETTING))
    if text is None:
        return True
    record = Generation.from_json(str(text))
    if record.kind is not plan.kind or record.target < promise.recall:
        return True
    live = index.read(lambda state: state.vectors.live)
    num_live, num_late = int(np.count_nonzero(live)), int(np.count_nonzero(live[record.until :]))
    num_gone = record.num_items - min(record.num_items, num_live - num_late)
    return (
        num_late > max(FEW_OUTSIDE, REBUILD_SHARE * record.num_items)
        or num_gone > REBUILD_SHARE * record.num_items
    )
