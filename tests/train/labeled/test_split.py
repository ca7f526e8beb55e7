"""Promises of parting: labels and classes are the images', what is held out is apart, and
nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.labeled.split import split_labeled
from tests.sentences import refused
from tests.train.labeled.small import draw_kinds, labeled_config


def test_labels_are_the_folders_and_a_tenth_is_held_out_at_most(tmp_path: Path) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 15))
    parted = split_labeled([source], labeled_config("born-again"))
    assert parted.classes == ("blue", "red")
    assert (len(parted.learned), len(parted.held_out)) == (27, 3)
    keys = [parted.learned.key(number) for number in range(27)]
    assert [parted.classes[label] for label in parted.labels] == [key.split("/")[0] for key in keys]
    assert not set(keys) & {parted.held_out.key(number) for number in range(3)}
    assert parted.num_unlabeled == 0


def test_images_held_out_by_hand_leave_all_others_to_learn_from(tmp_path: Path) -> None:
    source, other = (
        open_source(draw_kinds(tmp_path / "a", 10)),
        open_source(draw_kinds(tmp_path / "b", 2, first=50)),
    )
    parted = split_labeled([source], labeled_config("born-again"), held_out=other)
    assert len(parted.learned) == 20
    assert parted.held_out is other


def test_images_without_a_label_are_neither_learned_nor_held_out(tmp_path: Path) -> None:
    table = draw_kinds(tmp_path / "a", 10)
    source = open_source(table)

    class Some:
        """The same, every third without a label."""

        name, file, key, read = source.name, source.file, source.key, source.read
        skipped = source.skipped

        def __len__(self) -> int:
            return len(source)

        def metadata(self, number: int) -> dict[str, str | int | float]:
            return source.metadata(number) if number % 3 else {}

    parted = split_labeled([Some()], labeled_config("born-again"))
    assert parted.num_unlabeled == 7
    assert len(parted.learned) + len(parted.held_out) == 13
    keys = {source.key(number) for number in range(0, 20, 3)}
    assert not keys & {
        part.key(n) for part in (parted.learned, parted.held_out) for n in range(len(part))
    }
    labels = np.array(
        [parted.learned.key(n).split("/")[0] == "red" for n in range(len(parted.learned))]
    )
    np.testing.assert_array_equal(parted.labels, labels)


def test_one_kind_alone_and_nothing_held_out_are_refused(tmp_path: Path) -> None:
    one = open_source(draw_kinds(tmp_path / "one", 20, kinds=("blue",)))
    with pytest.raises(InputError, match="have 1 label"):
        split_labeled([one], labeled_config("born-again"))
    few = open_source(draw_kinds(tmp_path / "few", 4))
    with pytest.raises(InputError, match=r"No images of .* are held out"):
        split_labeled([few], labeled_config("born-again"))


def test_an_image_in_both_parts_is_refused_from_any_folder(
    tmp_path: Path,
) -> None:
    root = draw_kinds(tmp_path / "images", 10)
    with pytest.raises(
        InputError, match=r"red/000.png is among both the held-out and the labeled images"
    ):
        split_labeled(
            [open_source(root)], labeled_config("born-again"), held_out=open_source(root / "red")
        )


def test_too_few_images_to_hold_out_name_a_way_out(tmp_path: Path) -> None:
    seven, twenty = (open_source(draw_kinds(tmp_path / str(count), count)) for count in (4, 10))
    with refused("and only 8 are labeled. Name others with --held-out, or give at least 10."):
        split_labeled([seven], labeled_config("born-again"))
    with refused("set run.held_out, or name others with --held-out."):
        split_labeled([twenty], labeled_config("born-again", "run.held_out=0"))
    assert (
        len(split_labeled([twenty], labeled_config("born-again", "run.held_out=1")).held_out) == 1
    )
