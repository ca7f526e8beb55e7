"""`featkit duplicates`: list the images of an index that show the same."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from cyclopts import Parameter

from featkit.atomic import write_text
from featkit.cli.calibrate import measure
from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.item_table import shown_size
from featkit.cli.options import AsJson, Quiet, Where
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.duplicates import Calibration, Group, Pair
    from featkit.index import Index, Item

LevelName = Literal["same", "near", "similar"]
Keys = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)]
MAX_GROUPS_SHOWN = 50


def duplicates(
    index: Path,
    /,
    *,
    level: LevelName = "near",
    where: Where = None,
    against: Path | None = None,
    protect: Keys = None,
    distinct: Keys = None,
    exact: Annotated[bool, Parameter(negative="")] = False,
    csv_: Annotated[Path | None, Parameter(name="--csv")] = None,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """List the images of INDEX that show the same, in groups, with the one to keep. Nothing is
    deleted.

    There are three levels. same: the same bytes. near: the same content in another size, crop,
    color or compression, found by the model and seen in the pixels. similar: as near as copies by
    the model, but the pixels differ. In a group, every two images are duplicates of each other.

    If the command is stopped, even killed, run it again to continue.

    Example: featkit duplicates photos.index --level near --csv duplicates.csv

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`, which also knows the images' bytes.
    level
        List groups up to this level.
    against
        Another index of the same model: list the images of INDEX that this one has as well, for
        example to find training images in a test set.
    protect
        Folders whose images are kept before others. Can be repeated.
    distinct
        Keys of images that are not duplicates of each other. This is remembered in the index.
    exact
        Compare all vectors, even if INDEX has codes from `featkit compact` that save much time.
    csv_
        Also write all groups to this file: group, level, score, keep, reason, key.
    """
    need_extra("cpu", "faiss", "onnxruntime")
    from featkit.duplicates import Level, finding_pairs
    from featkit.duplicates.calibration import for_both
    from featkit.duplicates.decisions import mark_distinct
    from featkit.index import Index

    with Index.open(index) as opened:
        if distinct:
            count = mark_distinct(opened, distinct)
            stdout().print(f"{counted(count, 'pair')} will not be listed any more.")
            return
        is_silent = quiet or json_
        calibration = _calibration(opened, quiet=is_silent)
        with ExitStack() as stack:
            other = None if against is None else stack.enter_context(Index.open(against))
            if other is not None:
                calibration = for_both(calibration, _calibration(other, quiet=is_silent))
            shown = stack.enter_context(_Shown(quiet=is_silent))
            # what was found is kept until it is printed
            pairs = stack.enter_context(
                finding_pairs(
                    opened,
                    calibration,
                    where=where,
                    most=Level[level.upper()],
                    against=other,
                    exact=exact,
                    on_step=shown.step,
                    on_progress=shown.progress,
                )
            )
            shown.end()
            if other is not None:
                _print_pairs(opened, other, pairs, json_=json_, file=csv_)
                return
            groups = _groups(opened, pairs, protect or ())
            if csv_ is not None:
                write_text(csv_, _csv(GROUP_COLUMNS, _group_rows(groups)))
            if json_:
                print_json({"groups": [_in_json(group) for group in groups]})
            else:
                _print_groups(groups, csv_)


class _Shown:
    """Shows the steps of a comparison, each with its progress."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._unit = ""
        self._stack = ExitStack()
        self._reporter: ProgressReporter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def step(self, text: str) -> None:
        """Print a line."""
        if not self._quiet:
            print(f"{text}.", file=sys.stderr, flush=True)

    def progress(self, unit: str, done: int, total: int) -> None:
        """Show how many of all are done, in a bar for each unit."""
        if self._reporter is None or unit != self._unit:
            self.end()
            self._unit = unit
            label = "comparing" if unit == "images" else "looking at"
            self._reporter = self._stack.enter_context(
                ProgressReporter(label, total=total, unit=unit, quiet=self._quiet)
            )
        self._reporter(done)

    def end(self) -> None:
        """Remove the bar."""
        self._stack.close()
        self._reporter = None


def _calibration(index: Index, *, quiet: bool) -> Calibration:
    from featkit.duplicates.calibration import stored_calibration

    return stored_calibration(index) or measure(index, quiet=quiet)


def _groups(index: Index, pairs: Sequence[Pair], protect: Sequence[str]) -> list[Group]:
    from featkit.duplicates import group_pairs
    from featkit.duplicates.decisions import distinct_pairs
    from featkit.duplicates.sharpness import sharpness_of

    ids = sorted({each for pair in pairs for each in (pair.first, pair.second)})
    items: Mapping[int, Item] = index.read(lambda state: state.catalogue.items_by_id(ids))
    return group_pairs(
        pairs,
        items,
        distinct=distinct_pairs(index),
        protected=protect,
        sharpness=partial(sharpness_of, index),
    )


GROUP_COLUMNS = ("group", "level", "score", "keep", "reason", "key")
PAIR_COLUMNS = ("level", "score", "key", "also")


def _group_rows(groups: Sequence[Group]) -> list[tuple[object, ...]]:
    return [
        (
            number,
            group.level.word,
            round(group.score, 4),
            "yes" if position == 0 else "no",
            group.reason if position == 0 else "",
            item.key,
        )
        for number, group in enumerate(groups, 1)
        for position, item in enumerate(group.items)
    ]


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _in_json(group: Group) -> dict[str, object]:
    return {
        "level": group.level.word,
        "score": round(group.score, 4),
        "keep": group.items[0].key,
        "reason": group.reason,
        "others": [item.key for item in group.items[1:]],
    }


def _print_groups(groups: Sequence[Group], file: Path | None) -> None:
    rows = [
        (
            number if position == 0 else "",
            group.level.word if position == 0 else "",
            item.key,
            shown_size(item),
            f"keep: {group.reason}" if position == 0 else "",
        )
        for number, group in enumerate(groups[:MAX_GROUPS_SHOWN], 1)
        for position, item in enumerate(group.items)
    ]
    if rows:
        print_table("", ("", "level", "image", "size", ""), rows)
    if len(groups) > MAX_GROUPS_SHOWN:
        stdout().print(f"... and {len(groups) - MAX_GROUPS_SHOWN:,} more groups.")
    extra = sum(len(group.items) - 1 for group in groups)
    where = f" All are in {file}." if file is not None else ""
    stdout().print(
        f"{counted(len(groups), 'group')} with {counted(extra, 'image')} besides the ones to"
        f" keep.{where}"
    )


def _print_pairs(
    index: Index, other: Index, pairs: Sequence[Pair], *, json_: bool, file: Path | None
) -> None:
    own = index.read(
        lambda state: state.catalogue.items_by_id(sorted({pair.first for pair in pairs}))
    )
    others = other.read(
        lambda state: state.catalogue.items_by_id(sorted({pair.second for pair in pairs}))
    )
    rows = [
        (pair.level.word, round(pair.score, 4), own[pair.first].key, others[pair.second].key)
        for pair in sorted(pairs, key=lambda pair: (pair.level, -pair.score))
        if pair.first in own and pair.second in others
    ]
    if file is not None:
        write_text(file, _csv(PAIR_COLUMNS, rows))
    if json_:
        print_json({"pairs": [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in rows]})
        return
    if rows:
        print_table("", (*PAIR_COLUMNS[:2], str(index.path), str(other.path)), rows[:200])
    count = len({key for _, _, key, _ in rows})
    stdout().print(
        f"{counted(count, 'image')} of {index.path} "
        f"{'is' if count == 1 else 'are'} in {other.path} as well."
    )
