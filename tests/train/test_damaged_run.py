"""A run folder of which a file was emptied, cut or overwritten: it is resumed, or the file is named
in one sentence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from featkit.errors import FeatkitError
from featkit.sources import open_source
from featkit_train.labeled import self_training
from featkit_train.loop import train
from featkit_train.report import write_report
from featkit_train.run_folder import CONFIG_FILE
from tests.images import draw_folder
from tests.sentences import refused
from tests.train.labeled.small import draw_kinds, labeled_config
from tests.train.small import small_config

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "overwritten": lambda data: b"\xff\0{[\n" + data[5:],
    "zeros": lambda data: bytes(len(data)),
}
# They are written and never read back: the lock, and TensorBoard's.
NOT_READ = ("writer.lock", "events.out")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, of a method without labels, and `course`, of one with them; both finished."""
    place = tmp_path_factory.mktemp("runs")
    draw_folder(place / "images", 24)
    draw_kinds(place / "kinds", 10)
    draw_kinds(place / "held", 4, first=50)
    draw_folder(place / "others", 12)
    go_on_run(place, resume=False)
    go_on_course(place, resume=False)
    return place


def go_on_run(place: Path, *, resume: bool = True) -> None:
    config = small_config(
        "run.steps=2", "run.checkpoint_every=1", "run.evaluate_every=1", "run.held_out=2"
    )
    train(config, [open_source(place / "images")], place / "run", resume=resume)


def go_on_course(place: Path, *, resume: bool = True) -> None:
    config = labeled_config(
        "self-training", "self_training.rounds=1", "run.steps=2", "self_training.confidence=0.1"
    )
    with_labels, without, held_out = (
        open_source(place / name) for name in ("kinds", "others", "held")
    )
    self_training(
        config, [with_labels], [without], place / "course", held_out=held_out, resume=resume
    )


def damaged_copies(runs: Path, folder: str, tmp_path: Path, damage: str) -> list[tuple[Path, Path]]:
    """(place, file) of a copy of the runs for each file of one of them."""
    copies, kinds = [], set()
    for i, file in enumerate(sorted((runs / folder).rglob("*"))):
        # of files that differ in a number, the first
        kind = re.sub(r"\d+", "", str(file.relative_to(runs)))
        if file.is_file() and not file.name.startswith(NOT_READ) and kind not in kinds:
            kinds.add(kind)
            place = tmp_path / str(i)
            place.mkdir(parents=True)
            for name in ("images", "kinds", "held", "others"):
                (place / name).symlink_to(runs / name)
            shutil.copytree(runs / folder, place / folder)
            copy = place / file.relative_to(runs)
            copy.write_bytes(DAMAGES[damage](copy.read_bytes()))
            copies.append((place, copy))
    return copies


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("folder", "go_on"), [("run", go_on_run), ("course", go_on_course)])
def test_a_damaged_file_of_a_run_is_named_or_does_not_matter(
    runs: Path, tmp_path: Path, folder: str, go_on: Callable[[Path], None], damage: str
) -> None:
    copies = damaged_copies(runs, folder, tmp_path, damage)
    assert len(copies) >= 10
    for place, file in copies:
        for use in (
            lambda place=place: write_report(place / folder),
            lambda place=place: go_on(place),
        ):
            said = refusal_of(use)
            # of a checkpoint the folder is named
            assert said is None or (
                "\n" not in said and (file.name in said or file.parent.name in said)
            ), (file, said)


def refusal_of(use: Callable[[], object]) -> str | None:
    try:
        use()
    except FeatkitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_named(runs: Path, tmp_path: Path, damage: str) -> None:
    courses: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("run", go_on_run),
        ("course", go_on_course),
    )
    for folder, go_on in courses:
        for place, file in damaged_copies(runs, folder, tmp_path / folder, damage):
            if file.name == CONFIG_FILE and file.parent.name == folder:
                with refused(file):
                    go_on(place)
