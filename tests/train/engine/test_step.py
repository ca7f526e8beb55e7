"""Promises of a step: micro-batches, recomputed activations and compiled blocks change no
result."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from featkit_train.config import TrainConfig
from featkit_train.engine.step import Engine
from featkit_train.log import Log
from featkit_train.methods import BranchOutputs, Targets, Views
from featkit_train.methods.momentum import Term
from tests.train.methods.training import OWN_HEAD, draw
from tests.train.momentum import momentum_teacher
from tests.train.small import small_config
from tests.train.steps import batches, learn, make_engine

METHODS = {
    "dino": ["method=dino"],
    "ibot": ["method=ibot"],
    "dinov2": [
        "method=dinov2",
        "dino.centering=sinkhorn",
        "model.layer_scale=0.1",
        "ibot.mask_probability=0.8",
    ],
    "dinov3": ["method=dinov3", "model.position=rotary", "gram.weight=1.0", "gram.size=64"],
}
DROPPED = ["noise.drop_path=0.4", "noise.drop_path_rule=uniform", "noise.rotary_rescale=2.0"]


def quiet(name: str, *settings: str) -> TrainConfig:
    """Return a config without KoLeo, which compares images within a micro-batch."""
    return small_config(*METHODS[name], "dino.koleo_weight=0.0", *settings)


def one_step(config: TrainConfig, *, step: int = 1) -> tuple[Engine, Log, dict[str, Tensor]]:
    """Take a step from drawn weights; return engine, log and gradients."""
    engine = make_engine(config)
    draw(engine.method)
    gradients: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        named = engine.method.named_parameters()
        gradients.update(
            {
                name: parameter.grad.clone()
                for name, parameter in named
                if parameter.grad is not None
            }
        )

    engine.optimizer.register_step_pre_hook(keep)
    (crops,) = batches(config, engine, steps=1)
    return engine, engine.step(crops, step), gradients


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_make_the_step_of_the_whole_batch(name: str, parts: int) -> None:
    whole, log, gradients = one_step(quiet(name, "optim.clip_grad=0.0"))
    parted, parted_log, parted_gradients = one_step(
        quiet(name, "optim.clip_grad=0.0", f"engine.accumulate={parts}")
    )
    assert parted_log == pytest.approx(log, rel=1e-5)
    assert parted_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        scale = (
            float(gradient.norm())
            if "qkv.bias" not in key
            else float(gradients[key.replace("bias", "weight")].norm())
        )
        torch.testing.assert_close(
            parted_gradients[key], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1e-3), msg=key
        )
    for key, tensor in whole.method.state_dict().items():
        if "center" in key:
            torch.testing.assert_close(
                parted.method.state_dict()[key], tensor, rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_activation_checkpointing_changes_no_bit_of_a_step(name: str) -> None:
    kept, log, gradients = one_step(quiet(name, *DROPPED))
    again, log_again, gradients_again = one_step(
        quiet(name, *DROPPED, "engine.checkpoint_activations=true")
    )
    assert log_again == log
    assert all(torch.equal(gradients_again[key], gradient) for key, gradient in gradients.items())
    states = zip(kept.method.state_dict().values(), again.method.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in states)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, which says much about itself
def test_compiled_blocks_make_the_same_step() -> None:
    plain, log, _ = one_step(quiet("dinov2", *DROPPED))
    compiled, compiled_log, _ = one_step(quiet("dinov2", *DROPPED, "engine.compile=true"))
    assert compiled_log == pytest.approx(log, rel=1e-3)
    for ours, theirs in zip(compiled.method.parameters(), plain.method.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_gradients_are_clipped_and_their_norm_is_logged() -> None:
    _, log, gradients = one_step(quiet("dino", "optim.clip_grad=0.01"))
    free_log, free = one_step(quiet("dino", "optim.clip_grad=0.0"))[1:]
    length = torch.stack([gradient.norm() for gradient in free.values()]).norm().item()
    assert (
        log["grad_norm"] == pytest.approx(free_log["grad_norm"]) == pytest.approx(length, rel=1e-5)
    )
    assert torch.stack(
        [gradient.norm() for gradient in gradients.values()]
    ).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("clip_by", ["weight", "part"])
def test_gradients_are_clipped_by_weight_or_by_part(
    clip_by: str,
) -> None:
    settings = ["optim.clip_grad=0.02", "ibot.mask_probability=1.0", OWN_HEAD]
    cut_log, cut = one_step(quiet("dinov2", *settings, f"optim.clip_by={clip_by}"))[1:]
    free_log, free = one_step(quiet("dinov2", *settings[1:], "optim.clip_grad=0.0"))[1:]
    parts = list(free) if clip_by == "weight" else ["student.head.", "student.patch_head.", ""]
    left, num_cut = dict(free), 0
    for part in parts:
        names = [name for name in left if name.startswith(part)]
        length = torch.stack([left[name].norm() for name in names]).norm()
        num_cut += int(length > 0.02)
        for name in names:
            torch.testing.assert_close(
                cut[name], left.pop(name) * min(1.0, 0.02 / (length.item() + 1e-6))
            )
    assert not left
    assert num_cut > 0
    assert cut_log["grad_norm"] == pytest.approx(free_log["grad_norm"])


def test_step_logs_terms_schedules_and_entropies() -> None:
    _, log, _ = one_step(small_config(*METHODS["dinov3"], "run.batch_size=8"), step=1)
    terms = {"loss", "dino_loss", "ibot_loss", "koleo_loss", "gram_loss"}
    watched = {
        "teacher_entropy",
        "batch_entropy",
        "grad_norm",
        "lr",
        "weight_decay",
        "momentum",
        "teacher_temp",
    }
    assert log.keys() == terms | watched
    expected = log["dino_loss"] + log["ibot_loss"] + 2 * 0.05 * log["koleo_loss"] + log["gram_loss"]
    assert log["loss"] == pytest.approx(expected, rel=1e-5)


def test_optimizer_step_is_adamws_at_the_scheduled_rate() -> None:
    config = quiet(
        "dino",
        "optim.lr=0.01",
        "optim.weight_decay=0.5",
        "optim.weight_decay_end=0.5",
        "optim.clip_grad=0.0",
    )
    engine = make_engine(config)
    before = copy.deepcopy(momentum_teacher(engine.method).student.state_dict())
    (crops,) = batches(config, engine, steps=1)
    log = engine.step(crops, 2)
    assert log["lr"] == pytest.approx(0.01)
    for name, parameter in momentum_teacher(engine.method).student.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        decayed = before[name] * (1 - 0.01 * 0.5) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(
            parameter, decayed - 0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-4, atol=1e-5
        )


def test_seeded_weights_leave_the_callers_random_state() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make_engine(small_config())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = make_engine(small_config()), make_engine(small_config("run.seed=1"))
    assert torch.equal(
        momentum_teacher(first.method).student.head.prototypes,
        momentum_teacher(again.method).student.head.prototypes,
    )
    assert not torch.equal(
        momentum_teacher(first.method).student.head.prototypes,
        momentum_teacher(other.method).student.head.prototypes,
    )


def test_bfloat16_leaves_heads_and_losses_in_float32() -> None:
    engine, logs = learn(
        small_config("method=dinov2", "run.precision=bfloat16", "ibot.mask_probability=1.0"),
        steps=2,
    )
    exact = learn(
        small_config("method=dinov2", "run.precision=float32", "ibot.mask_probability=1.0"), steps=2
    )[1]
    assert {parameter.dtype for parameter in engine.method.parameters()} == {torch.float32}
    assert logs[1]["loss"] == pytest.approx(exact[1]["loss"], rel=0.02)
    assert logs[1]["loss"] != exact[1]["loss"]


@pytest.mark.parametrize("name", METHODS)
def test_logits_of_a_bfloat16_backbone_are_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(quiet(name, "run.precision=bfloat16"))
    draw(engine.method)
    method = momentum_teacher(engine.method)
    student, teacher, terms = (
        copy.deepcopy(method.student),
        copy.deepcopy(method.teacher),
        method.terms,
    )
    seen: list[tuple[BranchOutputs, Views, Targets]] = []

    def listen(outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        seen.append((outputs, views, targets))
        return terms(outputs, views, targets)

    monkeypatch.setattr(method, "terms", listen)
    (crops,) = batches(engine.config, engine, steps=1)
    engine.step(crops, 0)
    ((outputs, views, targets),) = seen
    for branch, found in ((student, outputs), (teacher, targets.teacher)):
        tokens, patches = (
            found.class_tokens,
            found.patch_tokens.flatten(0, 3).index_select(0, views.masked),
        )
        assert found.class_logits.dtype == found.patch_logits.dtype == torch.float32
        of_global_crops = found.class_logits[: len(tokens)]
        torch.testing.assert_close(of_global_crops, branch.head(tokens.float()), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found.patch_logits, branch.head_of_patches(patches.float()), rtol=0, atol=1e-6
        )
        assert (len(found.patch_logits) > 0) == method.patch_loss
    with torch.no_grad():
        exact = teacher.backbone(views.global_crops.flatten(0, 1)).class_token
    error = (targets.teacher.class_tokens.flatten(0, 1) - exact).abs().mean() / exact.abs().mean()
    assert 1e-3 < error < 0.05, "the backbone is in bfloat16"
