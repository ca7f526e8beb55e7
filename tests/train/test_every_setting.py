"""Every field of the config changes something: what is learned, or what a run does or leaves.

A field without a row here fails, and so does one that nobody reads.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from featkit.errors import EnvironmentProblem, InputError
from featkit.geometry import Geometry
from featkit.sources import Source, open_source, subset
from featkit_train.config import IbotConfig, TrainConfig
from featkit_train.engine.checkpoints import list_checkpoints
from featkit_train.engine.step import Engine
from featkit_train.images.crops import CropDataset, Crops
from featkit_train.labeled import born_again, rounds, self_training
from featkit_train.labeled.course import CourseListener
from featkit_train.log import Log
from featkit_train.loop import TrainingRun, train
from featkit_train.methods import METHODS, Labels
from featkit_train.networks.classifier import Classifier
from featkit_train.networks.heads import HeadConfig
from featkit_train.networks.vit import Block
from featkit_train.processes.distributed import World
from featkit_train.published import pretrained
from featkit_train.run_folder import NOTES_FILE
from featkit_train.run_parts import RunParts
from featkit_train.run_state import RunState
from featkit_train.settings import from_mapping, parse_settings, to_mapping, with_settings
from featkit_train.watching.diagnostics import Collapse, Finding
from featkit_train.watching.listener import Listener
from featkit_train.watching.probe import COPIES, HeldOut, Scores
from featkit_train.watching.standing import Standing
from featkit_train.weights import CLASSIFIER_FILE, load_backbone
from tests.train.labeled.small import LABELED
from tests.train.methods.published_backbone import save_published
from tests.train.published_files import official, reference
from tests.train.small import SMALL, small_config
from tests.train.steps import NUM_IMAGES, batches, drawn_images, make_engine

STEPS = 2
BASE = (
    *(
        "run.steps=6",
        "run.batch_size=4",
        "run.held_out=0",
        "crops.num_local=1",
        "dino.freeze_last_layer_steps=0",
    ),
    *("optim.warmup_steps=0", "optim.clip_grad=0.1", "dino.teacher_temp_steps=4"),
)
# Method and settings that the rows of a group share.
DINO, DINOV2 = ("method=dino",), ("method=dinov2", "ibot.mask_probability=0.8")
CENTER = (*DINOV2, "dino.centering=center")
ROTARY = ("method=dinov3", "model.position=rotary")
GRAM = (
    "method=dinov3",
    "gram.weight=1.0",
    "gram.size=32",
    "gram.update_every=1",
    "gram.max_updates=1",
)
BRANCHES = ("teacher", "student")
DISTILL = ("method=distill", "pretrained.name={published}", "pretrained.head_steps=0")
BORN_AGAIN = ("method=born-again",)
DISTRIBUTION, EXITS = (
    (*BORN_AGAIN, "knowledge.temperature=2.0"),
    (
        "method=internal",
        "classifier.exits=[1]",
    ),
)
SMALL_CONVNET = "stem: 4, widths: [8, 12], blocks: [1, 1]"
NETWORK = f"network={{arch: 'featkit:convnet', options: {{{SMALL_CONVNET}}}}}"
JOINT = ("method=joint", "crops.num_local=0")
SMALL_RESNET = "layers: [1, 1, 1, 1], channels: [4, 8, 8, 12]"
SMALL_HEAD = "{num_prototypes: 8, hidden_width: 12, bottleneck_width: 6}"
OWN_HEAD = (*CENTER, f"ibot.head={SMALL_HEAD}")

# Field: what else is set, and two values of which runs learn different things.
LEARNED: dict[str, tuple[Sequence[str], Any, Any]] = {
    "method": ((), "dino", "dinov2"),
    "model.patch": (DINO, 8, 16),
    "model.width": (DINO, 24, 36),
    "model.depth": (DINO, 2, 1),
    "model.num_heads": (DINO, 2, 3),
    "model.mlp": (DINO, "gelu", "swiglu"),
    "model.mlp_width": (DINO, 48, 40),
    "model.position": (DINO, "learned", "rotary"),
    "model.position_grid": (DINO, 4, 5),
    "model.position_offset": (DINO, 0.1, 0.0),
    "model.position_antialias": (DINO, "false", "true"),
    "model.rotary_base": (ROTARY, 100.0, 50.0),
    "model.num_registers": (DINO, 0, 2),
    "model.layer_scale": (DINO, "null", 0.1),
    "model.qkv_bias": (DINO, "true", "false"),
    "model.key_bias": (DINO, "true", "false"),
    "model.norm_eps": (DINO, 1e-6, 1e-2),
    "crops.global_size": (DINO, 32, 40),
    "crops.local_size": (DINO, 16, 24),
    "crops.num_local": (DINO, 1, 0),
    "crops.resolutions": (DINO, [], "[{share: 1.0, global_size: 40, local_size: 24}]"),
    "crops.global_scale": (DINO, [0.4, 1.0], [0.9, 1.0]),
    "crops.local_scale": (DINO, [0.05, 0.4], [0.05, 0.06]),
    "crops.rotation_degrees": (DINO, 15.0, 30.0),
    "crops.rotation_probability": (DINO, 0.5, 1.0),
    "crops.flip_probability": (DINO, 0.5, 0.0),
    "crops.interpolation": (DINO, "bilinear", "bicubic"),
    "crops.fixed_views": ((*DINO, "run.batch_size=12"), 0, 1),  # an epoch a step
    "color.jitter_probability": (DINO, 0.8, 0.0),
    "color.brightness": (DINO, 0.4, 0.1),
    "color.contrast": (DINO, 0.4, 0.1),
    "color.saturation": (DINO, 0.2, 0.1),
    "color.hue": (DINO, 0.1, 0.0),
    "color.gray_probability": (DINO, 0.2, 1.0),
    "color.blur_probability": (DINO, [1.0, 0.1, 0.5], [0.0, 0.0, 0.0]),
    "color.blur_sigma": (DINO, [0.1, 2.0], [5.0, 6.0]),
    "color.blur_side": (DINO, 224, 0),
    "color.solarize_probability": (DINO, [0.0, 0.2, 0.0], [1.0, 0.0, 0.0]),
    "noise.drop_path": (DINO, 0.0, 0.5),
    "noise.drop_path_rule": ((*DINO, "noise.drop_path=0.5"), "linear", "uniform"),
    "noise.rotary_rescale": (ROTARY, 1.0, 2.0),
    "optim.optimizer": (DINO, "adamw", "sgd"),
    "optim.lr": (DINO, 1e-3, 2e-3),
    "optim.lr_rule": (DINO, "constant", "sqrt"),
    "optim.schedule": (DINO, "cosine", "constant"),
    "optim.min_lr": (DINO, 1e-6, 1e-4),
    "optim.warmup_steps": (DINO, 0, 2),
    "optim.weight_decay": (DINO, 0.04, 0.4),
    "optim.weight_decay_end": (DINO, 0.4, 0.8),
    "optim.layer_decay": (DINO, 1.0, 0.5),
    "optim.patch_embed_lr": (DINO, 1.0, 0.2),
    "optim.clip_grad": (DINO, 0.1, 0.0),
    "optim.clip_by": (DINO, "all", "weight"),
    "optim.betas": (DINO, [0.9, 0.999], [0.5, 0.999]),
    "teacher.momentum": (DINO, 0.9, 0.5),
    "teacher.momentum_end": (DINO, 1.0, "null"),
    "dino.head.num_prototypes": (DINO, 16, 12),
    "dino.head.hidden_width": (DINO, 32, 24),
    "dino.head.bottleneck_width": (DINO, 16, 8),
    "dino.head.num_layers": (DINO, 3, 2),
    "dino.head.prototypes": (DINO, "unit", "free"),
    "dino.centering": (DINO, "center", "sinkhorn"),
    "dino.center_momentum": (DINO, 0.9, 0.5),
    "dino.student_temp": (DINO, 0.1, 0.2),
    "dino.teacher_temp": (DINO, 0.04, 0.05),
    "dino.teacher_temp_end": (DINO, 0.07, 0.1),
    "dino.teacher_temp_steps": (DINO, 4, 8),
    "dino.freeze_last_layer_steps": (DINO, 0, 2),
    "dino.koleo_weight": (DINO, 0.05, 0.0),
    "dino.koleo_group": (DINO, 0, 2),
    "ibot.weight": (CENTER, 1.0, 0.5),
    "ibot.head": (CENTER, "null", SMALL_HEAD),
    "ibot.head.num_prototypes": (OWN_HEAD, 8, 12),
    "ibot.head.hidden_width": (OWN_HEAD, 12, 8),
    "ibot.head.bottleneck_width": (OWN_HEAD, 6, 4),
    "ibot.head.num_layers": (OWN_HEAD, 3, 2),
    "ibot.head.prototypes": (OWN_HEAD, "unit", "free"),
    "ibot.teacher_temp": (CENTER, 0.04, 0.05),
    "ibot.teacher_temp_end": (CENTER, 0.07, 0.1),
    "ibot.mask_probability": (DINOV2, 0.8, 0.2),
    "ibot.mask_ratio": (DINOV2, [0.1, 0.5], [0.5, 0.6]),
    "ibot.mask_aspect": (DINOV2, 0.3, 0.9),
    "gram.weight": (GRAM, 1.0, 2.0),
    "gram.teacher": ((*GRAM, "gram.max_updates=0"), "null", "{published}"),
    "gram.size": (GRAM, 32, 64),
    "gram.update_every": (GRAM, 1, 5),
    "gram.max_updates": (GRAM, 1, 0),
    "pretrained.name": (DISTILL, "{published}", "{other}"),
    "pretrained.head_steps": (DISTILL, 0, 1),
    "classifier.arch": (BORN_AGAIN, "timm:resnet18", "timm:resnet26"),
    "classifier.options": (
        BORN_AGAIN,
        f"{{{SMALL_RESNET}}}",
        f"{{{SMALL_RESNET}, drop_rate: 0.5}}",
    ),
    "classifier.small_stem": (BORN_AGAIN, "true", "false"),
    "classifier.exits": (EXITS, [1], [2]),
    "labels.smoothing": (BORN_AGAIN, 0.0, 0.1),
    "knowledge.mode": (DISTRIBUTION, "kd", "dkpp"),
    "knowledge.temperature": (DISTRIBUTION, 2.0, 3.0),
    "knowledge.label_weight": (DISTRIBUTION, 1.0, 0.0),
    "knowledge.teacher_weight": (DISTRIBUTION, 1.0, 0.5),
    "network.arch": (DINO, "vit", "timm:test_vit"),
    "network.options": (
        (*DINO, NETWORK),
        f"{{{SMALL_CONVNET}}}",
        f"{{{SMALL_CONVNET}, pooling: mean}}",
    ),
    "joint.label_weight": (JOINT, 1.0, 0.0),
    "joint.self_weight": (JOINT, 1.0, 0.0),
    "joint.temperature": (JOINT, 0.1, 0.2),
    "joint.num_layers": (JOINT, 2, 1),
    "joint.hidden_width": (JOINT, 12, 16),
    "joint.bottleneck_width": (JOINT, 6, 8),
    "joint.mix_probability": (JOINT, 0.0, 1.0),
    "internal.alpha": (EXITS, 0.1, 0.2),
    "internal.feature_weight": (EXITS, 0.03, 0.3),
    "internal.temperature": (EXITS, 3.0, 2.0),
    "run.steps": (DINO, 6, 7),
    "run.batch_size": (DINO, 4, 6),
    "run.seed": (DINO, 0, 1),
    "run.precision": (DINO, "float32", "bfloat16"),
}


def config_of(*settings: str) -> TrainConfig:
    """The small config by BASE, as far as the settings' method reads it, and the settings."""
    methods = [setting.partition("=")[2] for setting in settings if setting.startswith("method=")]
    unread = METHODS[methods[-1]].unread()
    base = with_settings({**SMALL, "classifier": LABELED["classifier"]}, parse_settings(BASE))
    return from_mapping(
        TrainConfig,
        with_settings(
            {section: part for section, part in base.items() if section not in unread},
            parse_settings(settings),
        ),
    )


def labels_for(config: TrainConfig) -> Labels | None:
    """For methods with labels: those of the drawn images, and what a teacher would say of their
    first views."""
    if not METHODS[config.method].reads_labels:
        return None
    logits = np.random.default_rng(0).normal(size=(NUM_IMAGES, STEPS, 3)).astype(np.float32)
    return Labels(
        classes=("a", "b", "c"), class_ids=np.arange(NUM_IMAGES) % 3, teacher_logits=logits
    )


def learned(config: TrainConfig) -> str:
    """A digest of everything that a method holds after STEPS steps; made once for equal configs."""
    return _learned(json.dumps(to_mapping(config)))


@functools.cache
def _learned(written: str) -> str:
    config = from_mapping(TrainConfig, json.loads(written))
    engine = make_engine(config, labels=labels_for(config))
    for step, crops in enumerate(drawn_batches(config, engine)):
        engine.step(crops, step)
    digest = hashlib.sha256()
    for name, tensor in engine.method.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def drawn_batches(config: TrainConfig, engine: Engine) -> list[Crops]:
    """The run's first, made once for all configs that cut alike."""
    key = (
        config.crops,
        config.color,
        config.run.seed,
        config.run.batch_size,
        engine.crop_spec(),
    )
    if key not in _batches:
        _batches[key] = batches(config, engine, steps=STEPS)
    return _batches[key]


_batches: dict[Any, list[Crops]] = {}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two published backbones."""
    folder = tmp_path_factory.mktemp("published")
    save_published(folder / "one", num_registers=0, layer_scale=None)
    save_published(folder / "two", width=36, num_heads=3)
    return {"published": str(folder / "one"), "other": str(folder / "two")}


def leaves(config: Any, at: str = "") -> Iterator[str]:
    """Every field by its dotted name; a section that may be absent is one."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{at}{field.name}.")
        else:
            yield at + field.name


@pytest.mark.parametrize("field", LEARNED)
def test_what_is_learned_depends_on(field: str, places: dict[str, str]) -> None:
    more, *values = LEARNED[field]
    configs = []
    for value in values:
        settings = [*more, f"{field}={value}"]
        for name, place in places.items():
            settings = [setting.replace(f"{{{name}}}", place) for setting in settings]
        configs.append(config_of(*settings))
    assert learned(configs[0]) != learned(configs[1])


@pytest.mark.parametrize("method", [DINOV2, DISTRIBUTION], ids=["dinov2", "born-again"])
def test_the_same_config_learns_the_same(method: Sequence[str]) -> None:
    config = config_of(*method)
    first = learned(config)
    _learned.cache_clear()
    assert learned(config) == first


# -- what a run does or leaves ---------------------------------------------------------------------


class Seen:
    """A run of four steps on the drawn images, and what could be seen of it."""

    def __init__(self, out: Path, *settings: str) -> None:
        self.out, self.workers = out, set[int]()
        self._others = set(multiprocessing.active_children())  # of whoever ran before
        config = small_config(
            "method=dino",
            "run.steps=4",
            "run.batch_size=4",
            "run.held_out=2",
            "crops.num_local=0",
            *settings,
        )
        train(config, [open_source(drawn_images())], out, listener=Listener(on_log=self._hear))
        self.backbone, self.info = load_backbone(out)

    def _hear(self, log: Log) -> None:
        if 0 < log["step"] < 4:
            self.workers.add(len(set(multiprocessing.active_children()) - self._others))

    def steps_with(self, name: str) -> list[float]:
        """At which that was written."""
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return [line["step"] for line in lines if name in line]

    @property
    def checkpoints(self) -> list[str]:
        """The steps of those that are left."""
        return [
            path.name.removeprefix("step-").lstrip("0")
            for path in list_checkpoints(self.out / "checkpoints")
        ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """A run, and another that differs in nothing that is learned."""
    folder = tmp_path_factory.mktemp("seen")
    often = [
        "run.log_every=1",
        "run.evaluate_every=4",
        "run.checkpoint_every=1",
        "run.keep_checkpoints=2",
        "run.workers=0",
    ]
    seldom = [
        "run.log_every=2",
        "run.evaluate_every=2",
        "run.checkpoint_every=3",
        "run.keep_checkpoints=1",
        "run.workers=1",
    ]
    named = [
        "name=mine",
        "license=MIT",
        "data_name=photographs",
        "resize=stretch",
        "crops.test_size=48",
        "run.device=auto",
        "run.cache_bytes=0",
    ]
    return {"one": Seen(folder / "one", *often), "other": Seen(folder / "other", *seldom, *named)}


def test_what_only_changes_a_runs_habits_changes_nothing_learned(seen: dict[str, Seen]) -> None:
    one, other = (seen[name].backbone.state_dict() for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_log_every_says_which_steps_are_written(seen: dict[str, Seen]) -> None:
    assert seen["one"].steps_with("loss") == [1, 2, 3, 4]
    assert seen["other"].steps_with("loss") == [2, 4]


def test_evaluate_every_says_at_which_steps_copies_are_sought(seen: dict[str, Seen]) -> None:
    assert seen["one"].steps_with(COPIES) == [0, 4]
    assert seen["other"].steps_with(COPIES) == [0, 2, 4]


def test_checkpoint_every_and_keep_checkpoints_decide_what_stays(seen: dict[str, Seen]) -> None:
    assert seen["one"].checkpoints == ["3", "4"]
    assert seen["other"].checkpoints == ["4"]


def test_checkpoint_every_says_which_are_written(tmp_path: Path) -> None:
    assert Seen(tmp_path / "run", "run.checkpoint_every=3", "run.evaluate_every=4").checkpoints == [
        "3",
        "4",
    ]
    assert Seen(
        tmp_path / "more", "run.checkpoint_every=2", "run.evaluate_every=4"
    ).checkpoints == ["2", "4"]


def test_workers_are_processes(seen: dict[str, Seen]) -> None:
    assert seen["one"].workers == {0}
    assert seen["other"].workers == {1}


def test_name_license_and_data_are_on_the_models_card(seen: dict[str, Seen]) -> None:
    one, other = seen["one"].info, seen["other"].info
    assert (one.name, one.license) == ("small", "unstated")
    assert (other.name, other.license) == ("mine", "MIT")
    assert one.origin["data"].endswith("images")
    assert other.origin["data"] == "photographs"


def test_resize_is_how_the_model_will_see_images(seen: dict[str, Seen]) -> None:
    assert [seen[name].info.geometry.resize for name in ("one", "other")] == [
        "shorter_side",
        "stretch",
    ]


def test_test_size_is_the_side_that_the_model_takes(seen: dict[str, Seen]) -> None:
    sides = [(seen[name].info.geometry.height, seen[name].info.geometry.width) for name in seen]
    assert sides == [(32, 32), (48, 48)]


def test_cache_bytes_bound_the_images_that_are_kept() -> None:
    sizes = []
    for bound in (0, 30_000, 1 << 30):
        config = small_config(f"run.cache_bytes={bound}")
        dataset = CropDataset(
            open_source(drawn_images()),
            crops=config.crops,
            color=config.color,
            seed=0,
            cache_bytes=config.run.cache_bytes,
        )
        for number in range(6):
            dataset[(0, number, 0)]
        sizes.append(sum(image.width * image.height * 3 for image in dataset._cache.values()))
    assert sizes[0] == 0 < sizes[1] <= 30_000 < sizes[2]


def parts_of(out: Path, *settings: str) -> RunParts:
    """Make the parts of a run."""
    return RunParts(small_config(*settings), [open_source(drawn_images())], out)


def test_device_is_used_or_refused(tmp_path: Path) -> None:
    assert parts_of(tmp_path, "run.device=cpu").device == torch.device("cpu")
    with pytest.raises(InputError, match="abacus"):
        parts_of(tmp_path, "run.device=abacus")


def test_held_out_images_are_not_learned_from(tmp_path: Path) -> None:
    runs = [parts_of(tmp_path, f"run.held_out={number}") for number in (0, 1, 2)]
    assert [len(run.train_ids) for run in runs] == [20, 19, 18]
    assert [len(run.held_out.images) for run in runs] == [0, 1, 2]


def test_on_collapse_decides_whether_a_run_ends(tmp_path: Path) -> None:
    notes: list[str] = []
    for choice in ("stop", "warn"):
        parts = parts_of(tmp_path, f"run.on_collapse={choice}")
        run = TrainingRun(parts, Listener(on_note=notes.append))
        findings = [Finding("lost", is_collapse=True)]
        if choice == "stop":
            with pytest.raises(Collapse, match="lost"):
                run.heed(findings)
        else:
            run.heed(findings)
    assert notes == ["lost"]
    assert "lost" in (tmp_path / NOTES_FILE).read_text()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], None),
        (["watch.tolerance=0.05"], 3),
        (["watch.tolerance=0.05", "watch.patience=1"], 2),
        (["watch.tolerance=0.05", "watch.patience=9"], 4),  # lower to the last
        (["watch.tolerance=0.3"], None),
    ],
)
def test_watch_ends_a_run_by_its_tolerance_and_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], expected: int | None
) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.4, 0.4])
    monkeypatch.setattr(HeldOut, "measure", lambda *_: Scores({COPIES: next(scores)}, COPIES))
    config = small_config(
        "run.steps=4", "run.evaluate_every=1", "run.batch_size=4", "crops.num_local=0", *settings
    )
    report = train(config, [open_source(drawn_images())], tmp_path / "run")
    assert report.steps == (expected or 4)
    assert report.rolled_back_to == (None if expected is None else 1)


def test_init_gives_the_first_weights(tmp_path: Path, seen: dict[str, Seen]) -> None:
    settings = ["method=dino", "run.batch_size=4", "crops.num_local=0"]
    fresh, later = (
        parts_of(tmp_path / "a", *settings),
        parts_of(tmp_path / "b", *settings, f"init={seen['one'].out}"),
    )
    for parts in (fresh, later):
        parts.folder.path.mkdir()
        RunState(parts, Listener()).begin()
    expected = seen["one"].backbone.state_dict()
    for name, tensor in later.engine.method.result.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    untrained = fresh.engine.method.result.state_dict()["class_token"]
    assert not torch.equal(untrained, expected["class_token"])


def test_pretrained_weights_are_read_instead_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*_: object, **__: object) -> Path:
        raise EnvironmentProblem("no hub")

    monkeypatch.setattr(pretrained, "download", no_hub)
    settings = ["method=distill", "pretrained.name=dinov2_vits14"]
    with pytest.raises(EnvironmentProblem, match="no hub"):
        make_engine(small_config(*settings))
    with pytest.raises(InputError, match=r"mine\.pth"):
        make_engine(small_config(*settings, f"pretrained.weights={tmp_path / 'mine.pth'}"))


def test_branch_is_whose_weights_are_taken(tmp_path: Path) -> None:
    states = {
        branch: official("dinov2_vits14", reference("dinov2_vits14", seed=seed))
        for seed, branch in enumerate(BRANCHES)
    }
    torch.save(states, tmp_path / "both.pth")
    settings = [
        "method=distill",
        "pretrained.name=dinov2_vits14",
        f"pretrained.weights={tmp_path / 'both.pth'}",
    ]
    for asked, taken in {"null": "teacher", "teacher": "teacher", "student": "student"}.items():
        method = make_engine(small_config(*settings, f"pretrained.branch={asked}")).method
        class_token = method.state_dict()["teacher.backbone.class_token"]
        assert torch.equal(class_token.flatten(), states[taken]["cls_token"].flatten())


def passes(config: TrainConfig) -> tuple[int, Log, dict[str, torch.Tensor]]:
    """Return the calls of the student's first block in a step, the step's log, and the method's
    state after it."""
    engine, calls = make_engine(config), []
    first_block = engine.method.get_submodule("student.backbone.blocks.0")
    first_block.register_forward_pre_hook(lambda *_: calls.append(1))
    log = engine.step(drawn_batches(config, engine)[0], 0)
    return len(calls), log, engine.method.state_dict()


def test_accumulate_takes_a_batch_in_parts() -> None:
    quiet = [*BASE, *DINO, "dino.koleo_weight=0.0"]
    whole, log, _ = passes(small_config(*quiet))
    parts, log_of_parts, _ = passes(small_config(*quiet, "engine.accumulate=2"))
    assert (whole, parts) == (2, 4)  # global and local crops
    assert log_of_parts == pytest.approx(log, rel=1e-5)


def test_checkpoint_activations_computes_blocks_twice() -> None:
    kept, log, state = passes(small_config(*BASE, *DINO))
    again, log_again, state_again = passes(
        small_config(*BASE, *DINO, "engine.checkpoint_activations=true")
    )
    assert (kept, again) == (2, 4)
    assert log_again == log
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_compile_is_of_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Block] = []
    monkeypatch.setattr(Block, "compile", lambda block: compiled.append(block))
    for choice in (False, True):
        engine = make_engine(small_config(*DINO, f"engine.compile={str(choice).lower()}"))
        blocks = [module for module in engine.method.modules() if isinstance(module, Block)]
        assert len(blocks) == 4
        assert compiled == (blocks if choice else [])


def test_shard_spreads_weights_over_several_processes(
    tmp_path: Path,
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        for choice in (False, True):
            config = small_config(*DINO, f"engine.shard={str(choice).lower()}")
            engine = Engine(
                config, device=torch.device("cpu"), autocast_dtype=None, world=World(rank=0, size=2)
            )
            assert engine.is_sharded == choice
            assert all(
                isinstance(parameter, DTensor) == choice for parameter in engine.method.parameters()
            )
    finally:
        dist.destroy_process_group()
    assert not make_engine(small_config(*DINO, "engine.shard=true")).is_sharded


# -- what a course does or leaves ------------------------------------------------------------------

ONE_STUDENT = (
    "run.steps=2",
    "run.evaluate_every=2",
    "born_again.generations=1",
    "self_training.rounds=1",
)
BORN, SELF = ("method=born-again",), ("method=self-training", "self_training.confidence=0.0")
SMALL_VIT = (
    "{arch: 'timm:vit_tiny_patch16_224', options: {img_size: 32, patch_size: 8, embed_dim: 24,"
    " depth: 1, num_heads: 2}}"
)
# Field: as in LEARNED, of courses that leave different networks behind.
LEFT: dict[str, tuple[Sequence[str], Any, Any]] = {
    "born_again.student": (BORN, "null", SMALL_VIT),
    "self_training.pseudo": (SELF, "soft", "hard"),
    "self_training.confidence": (SELF, 0.0, 0.8),
    "self_training.balance": (SELF, "true", "false"),
    "self_training.labeled_share": (SELF, 0.0, 0.7),
    "self_training.student_length": (SELF, 1.0, 2.0),
}


class Columns:
    """A source's images, each with a label in either of two columns."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.file, self.key, self.read = (
            source,
            source.name,
            source.file,
            source.key,
            source.read,
        )
        self.skipped = source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def metadata(self, number: int) -> dict[str, str | int | float]:
        """By the number of the image."""
        return {"label": "ab"[number % 2], "mood": "xyz"[number % 3]}


class Left(NamedTuple):
    """A course's results: digests of its networks by the name of the training, its table, its
    notes."""

    networks: dict[str, str]
    standing: Standing
    notes: list[str]


def mostly_the_first(
    _path: Path, teacher: Classifier, source: Source, _geometry: Geometry, **_progress: Any
) -> np.ndarray:
    """(N, K) of a teacher that holds one image for the last class and all others, some more
    surely, for the first."""
    sure = np.linspace(0.6, 0.9, len(source), dtype=np.float32)
    probs = np.repeat(
        ((1 - sure) / (teacher.num_classes - 1))[:, None], teacher.num_classes, axis=1
    )
    probs[:, 0] = sure
    probs[0] = probs[0, ::-1].copy()
    return probs


def left(*settings: str) -> Left:
    """By generations or rounds on some of the drawn images; made once for equal configs."""
    mine = config_of(*settings)
    read = [
        setting
        for setting in ONE_STUDENT
        if setting.partition(".")[0] not in METHODS[mine.method].unread()
    ]
    return _left(json.dumps(to_mapping(config_of(settings[0], *read, *settings))))


@functools.cache
def _left(written: str) -> Left:
    config = from_mapping(TrainConfig, json.loads(written))
    images = Columns(open_source(drawn_images()))
    learned, rest, held_out = (
        subset(images, range(*ends)) for ends in ((0, 8), (8, 14), (14, NUM_IMAGES))
    )
    notes: list[str] = []
    listener = CourseListener(on_note=notes.append)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "label_images", mostly_the_first)
        out = Path(folder) / "run"
        if config.method == "self-training":
            standing = self_training(
                config, [learned], [rest], out, held_out=held_out, listener=listener
            )
        else:
            standing = born_again(config, [learned], out, held_out=held_out, listener=listener)
        files = sorted(out.glob(f"*/{CLASSIFIER_FILE}"))
        return Left(
            {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
            standing,
            notes,
        )


@pytest.mark.parametrize("field", LEFT)
def test_what_a_course_leaves_depends_on(field: str) -> None:
    more, *values = LEFT[field]
    one, other = (left(*more, f"{field}={value}") for value in values)
    assert one.networks != other.networks
    first = min(one.networks)
    assert one.networks[first] == other.networks[first], "what learns from labels alone is the same"


@pytest.mark.parametrize(
    ("method", "count", "patience", "name"),
    [
        (BORN, "born_again.generations", "born_again.patience", "generation"),
        (SELF, "self_training.rounds", "self_training.patience", "round"),
    ],
)
def test_students_are_this_many_unless_patience_ends_earlier(
    method: Sequence[str], count: str, patience: str, name: str
) -> None:
    def trainings(*settings: str) -> list[str]:
        return list(left(*method, *settings).networks)

    still = ("optim.lr=0.0", "optim.min_lr=0.0")
    assert trainings(f"{count}=1") == [f"{name}-0", f"{name}-1"]
    assert trainings(f"{count}=2", f"{patience}=2", *still) == [
        f"{name}-0",
        f"{name}-1",
        f"{name}-2",
    ]
    assert trainings(f"{count}=2", f"{patience}=1", *still) == [f"{name}-0", f"{name}-1"]


def test_cache_says_whether_the_teachers_logits_are_kept() -> None:
    kept, asked = (
        left(*BORN, "crops.fixed_views=2", f"knowledge.cache={choice}")
        for choice in ("auto", "never")
    )
    note = "generation-1: keeping its teacher's outputs for 16 views."
    assert note in kept.notes
    assert note not in asked.notes
    assert note not in left(*BORN, "knowledge.cache=auto").notes, "no view comes again"


def test_column_is_where_labels_are_looked_for() -> None:
    assert left(*BORN).standing.classes == ["a", "b"]
    assert left(*BORN, "labels.column=mood").standing.classes == ["x", "y", "z"]
    with pytest.raises(InputError, match="color"):
        left(*BORN, "labels.column=color")


# Field: the claim above that is about it.
CLAIMED = {
    "name": test_name_license_and_data_are_on_the_models_card,
    "license": test_name_license_and_data_are_on_the_models_card,
    "data_name": test_name_license_and_data_are_on_the_models_card,
    "crops.test_size": test_test_size_is_the_side_that_the_model_takes,
    "resize": test_resize_is_how_the_model_will_see_images,
    "init": test_init_gives_the_first_weights,
    "pretrained.weights": test_pretrained_weights_are_read_instead_of_the_hub,
    "pretrained.branch": test_branch_is_whose_weights_are_taken,
    "labels.column": test_column_is_where_labels_are_looked_for,
    "knowledge.cache": test_cache_says_whether_the_teachers_logits_are_kept,
    "born_again.generations": (test_students_are_this_many_unless_patience_ends_earlier),
    "born_again.patience": test_students_are_this_many_unless_patience_ends_earlier,
    "self_training.rounds": test_students_are_this_many_unless_patience_ends_earlier,
    "self_training.patience": (test_students_are_this_many_unless_patience_ends_earlier),
    "watch.tolerance": test_watch_ends_a_run_by_its_tolerance_and_patience,
    "watch.patience": test_watch_ends_a_run_by_its_tolerance_and_patience,
    "engine.shard": test_shard_spreads_weights_over_several_processes,
    "engine.accumulate": test_accumulate_takes_a_batch_in_parts,
    "engine.compile": test_compile_is_of_every_block,
    "engine.checkpoint_activations": (test_checkpoint_activations_computes_blocks_twice),
    "run.held_out": test_held_out_images_are_not_learned_from,
    "run.workers": test_workers_are_processes,
    "run.cache_bytes": test_cache_bytes_bound_the_images_that_are_kept,
    "run.device": test_device_is_used_or_refused,
    "run.log_every": test_log_every_says_which_steps_are_written,
    "run.evaluate_every": test_evaluate_every_says_at_which_steps_copies_are_sought,
    "run.checkpoint_every": test_checkpoint_every_says_which_are_written,
    "run.keep_checkpoints": test_checkpoint_every_and_keep_checkpoints_decide_what_stays,
    "run.on_collapse": test_on_collapse_decides_whether_a_run_ends,
}


def test_every_field_has_a_row() -> None:
    every = {*leaves(TrainConfig()), *leaves(TrainConfig(ibot=IbotConfig(head=HeadConfig())))}
    assert sorted(every) == sorted([*LEARNED, *LEFT, *CLAIMED])
