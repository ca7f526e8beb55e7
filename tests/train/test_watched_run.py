"""Promises of a run that is watched: what ruins a model is taken back, and a run that nothing can
watch says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featkit.sources import open_source
from featkit_train.config import TrainConfig
from featkit_train.loop import train
from featkit_train.watching.listener import Listener
from featkit_train.weights import load_backbone
from tests.train.methods.published_backbone import save_published
from tests.train.methods.training import OWN_HEAD
from tests.train.small import small_config
from tests.train.steps import drawn_images

RUINOUS = (
    "optim.lr=3.0",
    "optim.warmup_steps=0",
    "teacher.momentum=0.0",
    "teacher.momentum_end=0.0",
)


def adapted(published: Path, *settings: str) -> TrainConfig:
    """Adaptation that measures after every step."""
    return small_config(
        "method=adapt",
        "model={}",
        f"pretrained.name={published}",
        "pretrained.head_steps=0",
        OWN_HEAD,
        "run.batch_size=4",
        "run.evaluate_every=1",
        "run.on_collapse=warn",
        "watch.tolerance=0.01",
        *settings,
    )


@pytest.mark.parametrize(("steps", "patience"), [(3, 2), (2, 9)])
def test_a_ruined_model_is_taken_back_also_at_the_last_step(
    tmp_path: Path, steps: int, patience: int
) -> None:
    published = save_published(tmp_path / "published").state_dict()
    config = adapted(
        tmp_path / "published",
        *RUINOUS,
        f"run.steps={steps}",
        f"watch.patience={patience}",
        "run.held_out=6",
    )
    notes: list[str] = []
    scores: list[float] = []
    report = train(
        config,
        [open_source(drawn_images())],
        tmp_path / "run",
        listener=Listener(
            on_note=notes.append,
            on_log=lambda log: scores.extend([log["copy_recall"]] if "copy_recall" in log else []),
        ),
    )
    assert report.rolled_back_to == 0
    assert report.steps == 2
    assert report.copy_recall == scores[0] > scores[-1] + 0.01
    assert any("the model of step 0 is restored" in note for note in notes)
    backbone, _ = load_backbone(tmp_path / "run")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, published[name]), name


def test_a_run_without_held_out_images_warns(tmp_path: Path) -> None:
    save_published(tmp_path / "published")
    said: dict[str, list[str]] = {"adapt": [], "unwatched": []}
    for name, settings in (("adapt", []), ("unwatched", ["watch.tolerance=1.0"])):
        config = adapted(tmp_path / "published", "run.steps=1", "run.held_out=0", *settings)
        train(
            config,
            [open_source(drawn_images())],
            tmp_path / name,
            listener=Listener(on_note=said[name].append),
        )
    assert sum("This run is not measured" in note for note in said["adapt"]) == 1
    assert not any("This run is not measured" in note for note in said["unwatched"])
