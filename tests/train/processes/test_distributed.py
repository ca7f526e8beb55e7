"""Promises of several processes: two train what one trains, whole or sharded, and end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.engine.checkpoints import STATE_FILE, load_checkpoint
from featkit_train.images.order import EpochOrder
from featkit_train.loop import train
from featkit_train.processes.distributed import ALONE
from tests.images import draw_folder
from tests.processes import REPOSITORY
from tests.train.small import small_config
from tests.train.spread import CASES, SAVED_AT, Player, case_config, kinds_of, write_pretrained


def free_port() -> str:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two_processes(*arguments: object, timeout_s: float = 200) -> None:
    """Run tests.train.spread in two processes; both must succeed."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.train.spread", *map(str, arguments)],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=timeout_s)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("spread") / "images", 20)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    write_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, images: Path, pretrained: Path) -> Path:
    """The results of two processes for all cases."""
    out = tmp_path_factory.mktemp("by_two")
    two_processes(out, images, pretrained)
    return out


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(
    by_two: Path, images: Path, pretrained: Path, name: str
) -> None:
    alone = Player(case_config(name, pretrained), images, ALONE)
    logs, state = alone.play(), alone.engine.method.state_dict()
    result = alone.engine.result().state_dict()
    for kind in kinds_of(name):
        for step, (ours, theirs) in enumerate(
            zip(logs, json.loads((by_two / f"{name}.{kind}.json").read_text()), strict=True)
        ):
            assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5), (kind, step)
        spread = load_file(by_two / f"{name}.{kind}.st")
        assert spread.keys() == state.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(spread[key], tensor, rtol=0, atol=1e-5)
        whole = load_file(by_two / f"{name}.{kind}.result.st")
        assert whole.keys() == result.keys()
        for key, tensor in result.items():
            torch.testing.assert_close(whole[key], tensor, rtol=0, atol=1e-5)


def test_resumed_sharded_run_equals_the_unbroken_one(by_two: Path) -> None:
    logs = json.loads((by_two / "checkpoints.json").read_text())
    assert logs["resumed"] == logs["unbroken"]
    assert logs["from whole"] == logs["unbroken"]
    for ours, theirs in zip(logs["as replicas"], logs["unbroken"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_each_process_writes_its_own_shards_in_safetensors(by_two: Path) -> None:
    folder = by_two / "by shards" / f"step-{SAVED_AT:08d}"
    names = sorted(path.name for path in folder.iterdir())
    record = json.loads((folder / "progress.json").read_text())
    assert names == ["progress.json", *record["shards"]]
    first, second = (load_file(folder / name) for name in record["shards"])
    weight = "model.student.backbone.blocks.0.mlp.fc1.weight"
    assert first[weight].shape == second[weight].shape == (24, 24)
    assert list((by_two / "by shards").iterdir()) == [folder]
    assert sorted(path.name for path in (by_two / "whole" / folder.name).iterdir()) == [
        "progress.json",
        STATE_FILE,
    ]


def test_one_process_resumes_from_shards(by_two: Path, images: Path, pretrained: Path) -> None:
    alone = Player(
        case_config("dinov2, in parts", pretrained, "dino.freeze_last_layer_steps=3"),
        images,
        ALONE,
    )
    alone.load(by_two / "by shards")
    unbroken = json.loads((by_two / "checkpoints.json").read_text())["unbroken"]
    for ours, theirs in zip(alone.play(SAVED_AT), unbroken, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def test_missing_shard_is_named(by_two: Path, images: Path, pretrained: Path) -> None:
    folder = by_two / "by shards" / f"step-{SAVED_AT:08d}"
    shard = folder / json.loads((folder / "progress.json").read_text())["shards"][1]
    alone = Player(case_config("dinov2, in parts", pretrained), images, ALONE)
    shard.rename(shard.with_suffix(".away"))
    try:
        with pytest.raises(InputError, match=f"{shard.name} is missing"):
            load_checkpoint(folder, method=alone.engine.method, optimizer=alone.engine.optimizer)
    finally:
        shard.with_suffix(".away").rename(shard)


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images, a third of them unreadable."""
    folder = draw_folder(tmp_path_factory.mktemp("torn") / "images", 20)
    for number in range(0, 20, 3):
        (folder / f"{number:03d}.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, torn: Path) -> Path:
    """The reports of two processes at the end of runs."""
    out = tmp_path_factory.mktemp("ends")
    # What one process alone finds frees the other as soon as it is gone, so that its scene is the
    # last of its processes.
    for names in ("odd,stopped,resumed", "refused", "broken"):
        two_processes(
            out, torn, names, ",".join(free_port() for _ in names.split(",")), timeout_s=90
        )
    return out


def said(ends: Path, scene: str) -> list[list[str]]:
    """Return each rank's kind of end, message and notes."""
    return [json.loads((ends / f"{scene}.{rank}.json").read_text()) for rank in range(2)]


def test_batch_that_cannot_be_shared_is_refused_once(ends: Path) -> None:
    kinds = sorted(kind for kind, *_ in said(ends, "odd"))
    assert kinds == ["InputError", "SystemExit"]
    sentence = next(sentence for kind, sentence, *_ in said(ends, "odd") if kind == "InputError")
    assert sentence == "run.batch_size 7 cannot be shared by 2 processes alike; change one."
    assert next(sentence for kind, sentence, *_ in said(ends, "odd") if kind == "SystemExit") == "2"


def test_signal_to_one_process_stops_all_at_the_same_step(ends: Path) -> None:
    assert sorted(kind for kind, *_ in said(ends, "stopped")) == ["Interrupted", "SystemExit"]
    assert any(
        sentence == "stopped after step 3; add --resume to continue from there."
        for _, sentence, *_ in said(ends, "stopped")
    )
    main, other = said(ends, "resumed")
    assert main == ["done", "", "resuming at step 3"]
    assert other == ["done", ""]  # the main process alone speaks
    lines = [
        json.loads(line) for line in (ends / "stopped" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))


def test_unreadable_images_are_counted_across_resumes(
    ends: Path, torn: Path, tmp_path: Path
) -> None:
    train(small_config(), [open_source(torn)], tmp_path / "alone")
    alone, together = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "alone", ends / "stopped")
    )
    counts = [line["unreadable"] for line in alone if "unreadable" in line]
    assert len(counts) == 8
    assert counts[0] > 0
    assert [line["unreadable"] for line in together if "unreadable" in line] == counts


def test_error_in_one_process_ends_all_and_is_printed_once(ends: Path) -> None:
    main, other = said(ends, "refused")
    assert main[0] == "InputError"
    assert "holds a run already" in main[1]
    assert other[0] == "SystemExit"
    main, other = said(ends, "broken")
    assert other == ["ValueError", "no way"]
    assert main[:2] == ["SystemExit", "1"]


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_share_each_micro_batch(parts: int) -> None:
    def batches(rank: int, size: int) -> list[list[int]]:
        order = EpochOrder(
            np.arange(20),
            batch_size=8,
            seed=0,
            first_step=0,
            last_step=4,
            rank=rank,
            size=size,
            micro_batches=parts,
        )
        return [[number for _, number, *_ in batch] for batch in order]

    for whole, first, second in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert len(first) == len(second) == 4
        part = 8 // parts
        for number in range(parts):
            shared = [
                *first[number * part // 2 :][: part // 2],
                *second[number * part // 2 :][: part // 2],
            ]
            assert shared == whole[number * part :][:part]
    with pytest.raises(
        InputError,
        match=r"cannot be shared by 2 processes alike, each in engine\.accumulate 4 parts",
    ):
        EpochOrder(
            np.arange(20), batch_size=12, seed=0, first_step=0, last_step=1, size=2, micro_batches=4
        )
