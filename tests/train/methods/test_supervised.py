"""Promises of the supervised methods: one step of each against a plain loop of its paper's
equation, and what holds for all.

Letters: B images, V views, E exits (the deepest last), K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.engine.step import seeded_weights
from featkit_train.log import Log
from featkit_train.methods import Labels, StepResult, Supervised, Views, make_method
from featkit_train.methods.labels import UNKNOWN
from featkit_train.methods.supervised import Supervision
from featkit_train.networks.classifier import Classifier, build_backbone
from tests.train.labeled.small import labeled_config
from tests.train.methods.training import assert_same_gradients, generators, gradients
from tests.train.networks.networks import drawn
from tests.train.small import small_config
from tests.train.steps import NUM_IMAGES, batches, make_engine

CLASSES = ("ash", "beech", "elm", "oak")
K, V = len(CLASSES), 4
PLACES = ((5, 0), (2, 1), (7, 3), (0, 2), (2, 0), (1, 1))  # image and view; image 2 comes twice
VIT = (
    "arch: 'timm:vit_tiny_patch16_224', options: {img_size: 32, patch_size: 8, embed_dim: 24,"
    " depth: 2, num_heads: 2"
)
RESNET = "layers: [1, 1, 1, 1], channels: [4, 8, 8, 12]"
TEMPERATURE, LABEL_WEIGHT, TEACHER_WEIGHT, SMOOTHING = 2.5, 0.7, 1.6, 0.1
KNOWLEDGE = (
    *(f"knowledge.temperature={TEMPERATURE}", f"knowledge.label_weight={LABEL_WEIGHT}"),
    f"knowledge.teacher_weight={TEACHER_WEIGHT}",
)


def some_labels(*, unknown: tuple[int, ...] = (), **known: Any) -> Labels:
    """Return labels of NUM_IMAGES images; those in `unknown` have none."""
    class_ids = np.arange(NUM_IMAGES, dtype=np.int64) * 3 % K
    class_ids[list(unknown)] = UNKNOWN
    return Labels(classes=CLASSES, class_ids=class_ids, **known)


def some_logits(*, views: int = V) -> np.ndarray:
    """Draw teacher logits (NUM_IMAGES, views, K) float32 of varying confidence."""
    rng = np.random.default_rng(4)
    return (
        rng.normal(size=(NUM_IMAGES, views, K)) * rng.uniform(0.3, 3.0, size=(NUM_IMAGES, 1, 1))
    ).astype(np.float32)


def drawn_teacher(config: TrainConfig) -> Classifier:
    """Return a drawn teacher with BatchNorm statistics, in training mode."""
    with seeded_weights(5):
        teacher: Classifier = drawn(
            Classifier(build_backbone(config.classifier), K), seed=5
        ).train()
        teacher(torch.randn(8, 3, 32, 32) * 2 + 0.5)
    return teacher


def drawn_method(config: TrainConfig, known: Labels) -> Supervised:
    """Return a method whose classifier's weights are all drawn, in training mode."""
    with seeded_weights(0):
        method = make_method(config, labels=known)
    assert isinstance(method, Supervised)
    drawn(method.student)
    return method.train()


def some_views(places: tuple[tuple[int, int], ...] = PLACES, *, seed: int = 0) -> Views:
    """Draw one crop of 32 pixels for each (image, view)."""
    crops = torch.randn(1, len(places), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    none = torch.zeros(0, len(places), 3, 1, 1)
    return Views(
        crops,
        none,
        torch.zeros(1, 0, 4, 4, dtype=torch.bool),
        torch.zeros(0, dtype=torch.int64),
        none,
        torch.tensor(places).T,
    )


def supervision_of(method: Supervised, views: Views) -> Supervision:
    """Return the method's supervision of one micro-batch."""
    (supervision,), _ = method.make_targets([method.teacher_forward(views)], step=0)
    return supervision


def take_step(method: Supervised, views: Views, *, seed: int = 0) -> StepResult:
    """Compute loss and gradients without an optimizer step."""
    supervision = supervision_of(method, views)
    method.zero_grad()
    result: StepResult = method(views, supervision, generators(seed))
    result.loss.backward()
    return result


def assert_is_step(
    method: Supervised, views: Views, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> StepResult:
    """Assert that the method's step equals a loss of logits (E, B, K) and vectors (E, B, D)."""
    method.zero_grad()
    outputs = method.student(views.global_crops[0])
    expected = loss_of(outputs.logits.double(), outputs.vectors.double())
    expected.backward()
    expected_gradients = gradients(method)
    result = take_step(method, views)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected_gradients)
    assert expected_gradients.keys() == {name for name, _ in method.named_parameters()}
    torch.testing.assert_close(result.class_tokens, outputs.vectors[-1].detach())
    return result


def entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Return the cross-entropy of one row, -sum over k of target log p."""
    log_p = logits - logits.exp().sum().log()
    return -sum((target[k] * log_p[k] for k in range(K)), start=torch.zeros(()))


def one_hot(label: int, *, smoothing: float = 0.0) -> Tensor:
    return torch.tensor(
        [(1 - smoothing) * (k == label) + smoothing / K for k in range(K)], dtype=torch.float64
    )


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return T² KL(teacher || student) of one row of softened logits."""
    p, q = (teacher / TEMPERATURE).softmax(dim=0), (student / TEMPERATURE).softmax(dim=0)
    return TEMPERATURE**2 * sum(
        (p[k] * (p[k] / q[k]).log() for k in range(K)), start=torch.zeros(())
    )


# -- born-again ------------------------------------------------------------------------------------


def born_again(mode: str, *settings: str, known: Labels) -> Supervised:
    knowledge = KNOWLEDGE if mode != "cwtm" else ()  # which says nothing to it
    return drawn_method(
        labeled_config("born-again", f"knowledge.mode={mode}", *knowledge, *settings), known
    )


@pytest.mark.parametrize("asked", ["the teacher", "its logits"])
@pytest.mark.parametrize("label_weight", [LABEL_WEIGHT, 0.0])
def test_kd_mode_matches_labels_and_teacher_distribution(asked: str, label_weight: float) -> None:
    views = some_views()
    teacher = drawn_teacher(labeled_config("born-again"))
    logits = copy.deepcopy(teacher).eval()(views.global_crops[0]).logits[-1].detach()
    if asked == "its logits":
        kept = np.full((NUM_IMAGES, V, K), np.nan, np.float32)
        for (number, view), row in zip(PLACES, logits, strict=True):
            kept[number, view] = row
        known = some_labels(teacher_logits=kept)
    else:
        known = some_labels(teacher=teacher)
    smoothing = f"labels.smoothing={SMOOTHING}"
    method = born_again("kd", f"knowledge.label_weight={label_weight}", smoothing, known=known)

    def loss(student: Tensor, _vectors: Tensor) -> Tensor:
        terms = [
            label_weight
            * entropy(one_hot(known.class_ids[number], smoothing=SMOOTHING), student[-1, b])
            + TEACHER_WEIGHT * divergence(logits[b].double(), student[-1, b])
            for b, (number, _) in enumerate(PLACES)
        ]
        return torch.stack(terms).mean()

    result = assert_is_step(method, views, loss)
    parts = result.logged["label_loss"] + result.logged["teacher_loss"]
    assert parts.item() == pytest.approx(result.loss.item(), rel=1e-6)
    assert (result.logged["label_loss"].item() == 0) == (label_weight == 0)


def test_cwtm_mode_weights_labels_by_teacher_confidence() -> None:
    kept, views = some_logits(), some_views()
    known = some_labels(teacher_logits=kept)
    rows = [torch.from_numpy(kept[number, view]).double().softmax(dim=0) for number, view in PLACES]
    confidence = [max(row.tolist()) for row in rows]
    method = born_again("cwtm", known=known)

    def loss(student: Tensor, _vectors: Tensor) -> Tensor:
        terms = [
            confidence[b]
            / sum(confidence)
            * entropy(one_hot(known.class_ids[number]), student[-1, b])
            for b, (number, _) in enumerate(PLACES)
        ]
        return torch.stack(terms).sum()

    assert_is_step(method, views, loss)
    _, watched = method.make_targets([method.teacher_forward(views)], step=0)
    assert watched["teacher_confidence"].item() == pytest.approx(np.mean(confidence))


def engine_step(
    config: TrainConfig, known: Labels, *, step: int = 0
) -> tuple[Log, dict[str, Tensor]]:
    """Take a step of an engine; return its log and gradients."""
    engine = make_engine(config, labels=known)
    (crops,) = batches(config, engine, steps=1)
    return engine.step(crops, step), gradients(engine.method)


@pytest.mark.parametrize("mode", ["kd", "cwtm", "dkpp"])
def test_micro_batches_have_the_gradients_of_the_whole_batch(mode: str) -> None:
    known = some_labels(teacher_logits=some_logits())

    def config(*settings: str) -> TrainConfig:
        return labeled_config(
            "born-again",
            f"classifier={{{VIT}}}}}",
            f"knowledge.mode={mode}",
            "optim.clip_grad=0.0",
            *settings,
        )

    log, whole = engine_step(config(), known)
    for parts in (2, 4):
        log_of_parts, in_parts = engine_step(config(f"engine.accumulate={parts}"), known)
        assert log_of_parts == pytest.approx(log, rel=1e-5)
        assert in_parts.keys() == whole.keys()
        for name, gradient in in_parts.items():
            # Key biases, which change no softmax, are noise.
            atol = 1e-5 * float(whole[name].norm()) if not name.endswith("qkv.bias") else 1e-6
            torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=atol, msg=name)
    assert log["teacher_confidence"] > 1 / K


def test_dkpp_mode_permutes_all_but_the_teachers_maximum() -> None:
    kept, views = some_logits(), some_views()
    known = some_labels(teacher_logits=kept)
    method = born_again("dkpp", known=known)
    told = supervision_of(method, views).teacher_logits
    for row, (number, view) in zip(told.tolist(), PLACES, strict=True):
        best = int(kept[number, view].argmax())
        assert row[best] == kept[number, view, best]
        assert sorted(row) == sorted(kept[number, view].tolist())
    assert not torch.equal(
        told, supervision_of(born_again("kd", known=known), views).teacher_logits
    )

    def loss(student: Tensor, _vectors: Tensor) -> Tensor:
        terms = [
            LABEL_WEIGHT * entropy(one_hot(known.class_ids[number]), student[-1, b])
            + TEACHER_WEIGHT * divergence(told[b].double(), student[-1, b])
            for b, (number, _) in enumerate(PLACES)
        ]
        return torch.stack(terms).mean()

    assert_is_step(method, views, loss)


def test_dkpp_permutation_depends_on_image_and_view_alone() -> None:
    same = np.broadcast_to(np.array([0.1, 0.2, 3.0, 0.4], np.float32), (NUM_IMAGES, V, K))
    method = born_again("dkpp", known=some_labels(teacher_logits=same))
    every = tuple((number, view) for number in range(NUM_IMAGES) for view in range(V))
    told = dict(
        zip(every, supervision_of(method, some_views(every)).teacher_logits.tolist(), strict=True)
    )
    for places in (PLACES, PLACES[::-1], PLACES[2:3]):
        rows = supervision_of(method, some_views(places, seed=3)).teacher_logits.tolist()
        assert rows == [told[place] for place in places]
    assert {row[2] for row in told.values()} == {np.float32(3.0)}
    assert len({tuple(row) for row in told.values()}) == math.factorial(K - 1), "every order comes"
    assert any(told[number, 0] != told[number, 1] for number in range(NUM_IMAGES))
    other = born_again("dkpp", "run.seed=1", known=some_labels(teacher_logits=same))
    assert supervision_of(other, some_views(every)).teacher_logits.tolist() != list(told.values())


@pytest.mark.parametrize("mode", ["kd", "cwtm", "dkpp"])
def test_first_generation_learns_from_labels_alone(mode: str) -> None:
    known = some_labels()
    method = born_again(mode, known=known)

    def loss(student: Tensor, _vectors: Tensor) -> Tensor:
        return torch.stack(
            [
                entropy(one_hot(known.class_ids[number]), student[-1, b])
                for b, (number, _) in enumerate(PLACES)
            ]
        ).mean()

    result = assert_is_step(method, some_views(), loss)
    assert result.logged.keys() == {"label_loss", "batch_accuracy"}
    assert method.make_targets([method.teacher_forward(some_views())], step=0)[1] == {}


@pytest.mark.parametrize("mode", ["kd", "cwtm", "dkpp"])
def test_teacher_is_unchanged_and_in_evaluation_mode(mode: str) -> None:
    teacher = drawn_teacher(labeled_config("born-again"))
    before = copy.deepcopy(teacher.state_dict())
    method = born_again(mode, known=some_labels(teacher=teacher))
    take_step(method, some_views())
    assert all(not module.training for module in teacher.modules())
    assert any("running_mean" in name for name in before)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not {id(parameter) for parameter in method.parameters()} & {
        id(parameter) for parameter in teacher.parameters()
    }


# -- self-training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_soft_pseudo_labels_replace_missing_labels(
    smoothing: float,
) -> None:
    unknown = (2, 7, 9)
    probs = torch.from_numpy(some_logits(views=1)[:, 0]).softmax(dim=-1).numpy()
    known = some_labels(unknown=unknown, probs=probs)
    method = drawn_method(labeled_config("self-training", f"labels.smoothing={smoothing}"), known)

    def loss(student: Tensor, _vectors: Tensor) -> Tensor:
        terms = []
        for b, (number, _) in enumerate(PLACES):
            label = known.class_ids[number]
            target = (
                torch.from_numpy(probs[number])
                if number in unknown
                else one_hot(label, smoothing=smoothing)
            )
            terms.append(entropy(target, student[-1, b]))
        return torch.stack(terms).mean()

    result = assert_is_step(method, some_views(), loss)
    right = [
        int(row.argmax()) == known.class_ids[number]
        for row, (number, _) in zip(
            method.student(some_views().global_crops[0]).logits[-1], PLACES, strict=True
        )
        if number not in unknown
    ]
    assert result.logged["batch_accuracy"].item() == pytest.approx(np.mean(right)), (
        "of those that people have labeled"
    )


@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_hard_pseudo_labels_count_as_labels(smoothing: float) -> None:
    known = some_labels()
    method = drawn_method(labeled_config("self-training", f"labels.smoothing={smoothing}"), known)

    def loss(student: Tensor, _vectors: Tensor) -> Tensor:
        targets = [one_hot(known.class_ids[number], smoothing=smoothing) for number, _ in PLACES]
        return torch.stack(
            [entropy(target, student[-1, b]) for b, target in enumerate(targets)]
        ).mean()

    assert_is_step(method, some_views(), loss)


def test_batch_without_labels_has_a_loss_and_no_accuracy() -> None:
    probs = torch.from_numpy(some_logits(views=1)[:, 0]).softmax(dim=-1).numpy()
    method = drawn_method(
        labeled_config("self-training"), some_labels(unknown=tuple(range(NUM_IMAGES)), probs=probs)
    )
    result = take_step(method, some_views())
    assert result.logged["batch_accuracy"].item() == 0
    assert result.loss.item() > 0


# -- internal distillation -------------------------------------------------------------------------


@pytest.mark.parametrize("exits", [(2,), (1, 3)])
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
def test_internal_distillation_is_equation_5_over_exits(
    exits: tuple[int, ...], smoothing: float
) -> None:
    alpha, feature_weight = 0.3, 0.5
    settings = (
        *(
            f"classifier.exits={list(exits)}",
            f"labels.smoothing={smoothing}",
            f"internal.alpha={alpha}",
        ),
        *(f"internal.feature_weight={feature_weight}", f"internal.temperature={TEMPERATURE}"),
    )
    known = some_labels()
    method = drawn_method(labeled_config("internal", *settings), known)

    def loss(student: Tensor, vectors: Tensor) -> Tensor:
        assert len(student) == len(exits) + 1
        terms = []
        for b, (number, _) in enumerate(PLACES):
            target = one_hot(known.class_ids[number], smoothing=smoothing)
            terms.append(entropy(target, student[-1, b]))
            for e in range(len(exits)):
                terms.append((1 - alpha) * entropy(target, student[e, b]))
                terms.append(alpha * divergence(student[-1, b].detach(), student[e, b]))
                terms.append(
                    feature_weight * ((vectors[e, b] - vectors[-1, b].detach()) ** 2).mean()
                )
        return torch.stack(terms).sum() / len(PLACES)

    result = assert_is_step(method, some_views(), loss)
    assert result.logged.keys() == {"label_loss", "teacher_loss", "feature_loss", "batch_accuracy"}


# -- what holds for all ----------------------------------------------------------------------------

METHODS_WITH_LABELS = ["born-again", "self-training", "internal"]
NOISY = {
    "CNN": (f"classifier.options={{{RESNET}, drop_rate: 0.5, drop_path_rate: 0.3}}",),
    "ViT": (f"classifier={{{VIT}, proj_drop_rate: 0.4, drop_path_rate: 0.3}}}}",),
}


@pytest.mark.parametrize("network", NOISY)
def test_classifier_noise_is_keyed_by_seed_and_step(
    network: str,
) -> None:
    def loss(step: int, *settings: str, caller: int = 0) -> float:
        # The same weights and crops for all: those of seed 0.
        engine = make_engine(labeled_config("born-again", *NOISY[network]), labels=some_labels())
        (crops,) = batches(engine.config, engine, steps=1)
        engine.config = labeled_config("born-again", *NOISY[network], *settings)
        torch.manual_seed(caller)
        before = torch.get_rng_state()
        log = engine.step(crops, step)
        assert torch.equal(torch.get_rng_state(), before)
        return log["loss"]

    first = loss(0)
    assert loss(0, caller=7) == first
    assert loss(1) != first
    assert loss(0, "run.seed=1") != first


def test_network_without_noise_has_one_loss_at_every_step() -> None:
    known = some_labels()
    first, second = (
        engine_step(labeled_config("born-again"), known, step=step)[0]["loss"] for step in (0, 1)
    )
    assert first == second


@pytest.mark.parametrize("method", METHODS_WITH_LABELS)
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("engine.shard=true", "{} cannot shard its weights; leave engine.shard out."),
        ("model.patch=8", "{} does not read the setting model.patch"),
        ("noise.drop_path=0.1", "{} does not read the setting noise.drop_path"),
        ("teacher.momentum=0.5", "{} does not read the setting teacher.momentum"),
        ("dino.koleo_weight=0.1", "{} does not read the setting dino.koleo_weight"),
        ("ibot.weight=2.0", "{} does not read the setting ibot.weight"),
        ("gram.weight=2.0", "{} does not read the setting gram.weight"),
        ("pretrained.name=x", "{} does not read the setting pretrained.name"),
        (
            "crops.global_size=36",
            "crops.global_size 36 is not a multiple of a position of the network's last feature",
        ),
    ],
)
def test_settings_that_no_supervised_method_reads_are_refused(
    method: str, setting: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence.format(method)):
        make_method(labeled_config(method, setting), labels=some_labels())


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("born-again", "internal.alpha=0.5"),
        ("born-again", "self_training.rounds=1"),
        ("self-training", "knowledge.mode=dkpp"),
        ("self-training", "born_again.generations=1"),
        ("internal", "knowledge.temperature=3.0"),
        ("internal", "self_training.pseudo=hard"),
    ],
)
def test_settings_of_another_supervised_method_are_refused(method: str, setting: str) -> None:
    with pytest.raises(
        InputError,
        match=f"{method} does not read the setting {setting.split('=')[0]}; leave it out.",
    ):
        make_method(labeled_config(method, setting), labels=some_labels())


@pytest.mark.parametrize(
    "setting", ["labels.smoothing=0.1", "classifier.arch=timm:resnet26", "knowledge.mode=dkpp"]
)
def test_methods_without_labels_refuse_supervised_settings(setting: str) -> None:
    with pytest.raises(InputError, match=f"dino does not read the setting {setting.split('=')[0]}"):
        make_method(small_config(setting))


@pytest.mark.parametrize("method", METHODS_WITH_LABELS)
def test_supervised_method_without_labels_is_refused(method: str) -> None:
    with pytest.raises(InputError, match=f"{method} learns from labels; run it by"):
        make_method(labeled_config(method))


@pytest.mark.parametrize("method", ["born-again", "self-training"])
def test_exits_that_a_method_does_not_train_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=f"{method} does not train exits"):
        make_method(labeled_config(method, "classifier.exits=[1]"), labels=some_labels())


@pytest.mark.parametrize("setting", ["temperature=2.0", "label_weight=0.5", "teacher_weight=0.0"])
def test_settings_that_cwtm_ignores_are_refused(setting: str) -> None:
    with pytest.raises(InputError, match="cwtm learns from the labels alone"):
        labeled_config("born-again", "knowledge.mode=cwtm", f"knowledge.{setting}")
