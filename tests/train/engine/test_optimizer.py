"""Promises of the optimizer: learning rates, weight decay and schedules of all parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featkit_train.config import OptimConfig
from featkit_train.engine.optimizer import lr_share, make_optimizer, peak_lr, set_schedules
from featkit_train.methods import Labels, make_method
from featkit_train.schedules import cosine_schedule
from tests.train.labeled.small import labeled_config
from tests.train.small import small_config

MODEL = ("model.depth=3", "model.num_registers=2", "model.layer_scale=0.1")
HEADS = "ibot.head={num_prototypes: 8, hidden_width: 12, bottleneck_width: 6}"


def student() -> nn.Module:
    """Create a method with three blocks, registers, LayerScale, a mask token and two heads."""
    return make_method(small_config("method=dinov2", *MODEL, HEADS))


def of_names(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    """Return each parameter's optimizer group by name."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]
    }


def test_optimizer_holds_each_trainable_parameter_once() -> None:
    method = student()
    optimizer = make_optimizer(method, OptimConfig(layer_decay=0.5))
    inside = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert len(inside) == len(set(inside)) == len(learning)
    assert set(inside) == set(learning)
    assert all(name.startswith("student.") for name in of_names(method, optimizer))


def test_norms_biases_and_scales_have_no_weight_decay() -> None:
    method = student()
    for name, group in of_names(method, make_optimizer(method, OptimConfig())).items():
        # as the released code has it
        still = name.endswith(".bias") or ".norm" in name or name.endswith("gamma")
        assert group["decays"] == (not still), name


def test_layer_decay_falls_from_heads_to_embeddings() -> None:
    config = OptimConfig(layer_decay=0.5, patch_embed_lr=0.2)
    method = student()
    shares = {
        name: group["lr_share"]
        for name, group in of_names(method, make_optimizer(method, config)).items()
    }
    for name, share in shares.items():
        expected = 1.0
        for number in range(3):
            if f".blocks.{number}." in name:
                expected = 0.5 ** (3 - number)
        if "patch_embed" in name:
            expected = 0.2 * 0.5**4
        elif name.endswith(
            ("class_token", "registers", "mask_token", "class_position", "patch_positions")
        ):
            expected = 0.5**4
        assert share == pytest.approx(expected), name
    assert {round(float(share), 6) for share in shares.values()} == {  # type: ignore[arg-type]
        1.0,
        0.5,
        0.25,
        0.125,
        0.0625,
        0.0125,
    }


def test_parameters_move_by_their_share_of_the_rate() -> None:
    config = OptimConfig(
        lr=1e-3,
        lr_rule="constant",
        warmup_steps=0,
        layer_decay=0.5,
        weight_decay=0.0,
        weight_decay_end=0.0,
    )
    method = student()
    optimizer = make_optimizer(method, config)
    set_schedules(optimizer.param_groups, config, step=0, num_steps=10, images_per_step=8)
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in method.named_parameters():
        moved = before[name] - parameter.detach()
        if not parameter.requires_grad:
            assert not moved.any(), name
        elif moved.numel():  # Adam's first step is the rate whatever the gradient
            expected = 1e-3 * lr_share(name, depth=3, config=config)
            torch.testing.assert_close(
                moved, torch.full_like(moved, expected), rtol=1e-2, atol=1e-6, msg=name
            )


def timm_vit(*settings: str) -> nn.Module:
    """Create a supervised method over a timm ViT of three blocks, changed by `settings`."""
    options = (
        "{img_size: 32, patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2, reg_tokens: 1,"
        " init_values: 0.1}"
    )
    config = labeled_config(
        "internal",
        f"classifier={{arch: 'timm:vit_tiny_patch16_224', options: {options}}}",
        *settings,
    )
    return make_method(config, labels=Labels(classes=("a", "b"), class_ids=np.zeros(4, np.int64)))


@pytest.mark.parametrize(("exits", "at"), [("[]", "body"), ("[1]", "trunk.body")])
def test_layer_decay_works_for_timms_transformers(exits: str, at: str) -> None:
    config = OptimConfig(layer_decay=0.5, patch_embed_lr=0.2)
    method = timm_vit(f"classifier.exits={exits}")
    groups = of_names(method, make_optimizer(method, config))
    shares = {
        name.removeprefix(f"student.backbone.{at}."): group["lr_share"]
        for name, group in groups.items()
    }
    expected = {
        **dict.fromkeys(("cls_token", "reg_token", "pos_embed"), 0.5**4),
        **dict.fromkeys(("patch_embed.proj.weight", "patch_embed.proj.bias"), 0.2 * 0.5**4),
        **{f"blocks.{number}.attn.qkv.weight": 0.5 ** (3 - number) for number in range(3)},
        **{f"blocks.{number}.ls1.gamma": 0.5 ** (3 - number) for number in range(3)},
        **dict.fromkeys(("norm.weight", "student.heads.0.weight"), 1.0),
    }
    assert {name: shares[name] for name in expected} == pytest.approx(expected)
    others = {
        name: share
        for name, share in shares.items()
        if not name.startswith("blocks.") and name not in expected
    }
    assert set(others.values()) == {1.0}
    assert {name.split(".")[0] for name in others} <= {"norm", "student"}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("body.conv_proj.weight", 0.2 * 0.5**4),
        ("body.encoder.pos_embedding", 0.5**4),
        ("body.class_token", 0.5**4),
        ("body.encoder.layers.encoder_layer_0.mlp.0.weight", 0.5**3),
        ("body.encoder.layers.encoder_layer_2.self_attention.in_proj_bias", 0.5),
        ("body.encoder.ln.weight", 1.0),
    ],
)
def test_layer_decay_works_for_torchvisions_transformers(name: str, share: float) -> None:
    config = OptimConfig(layer_decay=0.5, patch_embed_lr=0.2)
    assert lr_share(f"student.backbone.{name}", depth=3, config=config) == pytest.approx(share)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_nesterovs_step_with_weight_decay(momentum: float) -> None:
    config = OptimConfig(
        optimizer="sgd",
        lr=0.1,
        lr_rule="constant",
        warmup_steps=0,
        weight_decay=0.5,
        weight_decay_end=0.2,
        betas=(momentum, 0.9),
    )
    torch.manual_seed(0)
    layer, gradients = nn.Linear(3, 2), torch.randn(4, 2, 4)
    optimizer = make_optimizer(layer, config)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    speeds = [torch.zeros(2, 3), torch.zeros(2)]
    for step, gradient in enumerate(gradients):
        lr, decay = set_schedules(
            optimizer.param_groups, config, step=step, num_steps=4, images_per_step=8
        )
        layer.weight.grad, layer.bias.grad = gradient[:, :3].clone(), gradient[:, 3].clone()
        optimizer.step()
        # Sutskever et al., as torch writes it: v = momentum v + g; w -= lr (g + momentum v).
        for values, own, place in (
            (weight, gradient[:, :3] + decay * weight, 0),
            (bias, gradient[:, 3], 1),
        ):
            speeds[place] = momentum * speeds[place] + own
            values -= lr * (own + momentum * speeds[place])
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(layer.bias.detach(), bias)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 9])
def test_schedules_reach_every_group(step: int) -> None:
    config = OptimConfig(
        lr=1e-2,
        lr_rule="constant",
        warmup_steps=2,
        weight_decay=0.1,
        weight_decay_end=0.2,
        layer_decay=0.5,
    )
    optimizer = make_optimizer(student(), config)
    lr, weight_decay = set_schedules(
        optimizer.param_groups, config, step=step, num_steps=10, images_per_step=8
    )
    assert lr == pytest.approx(
        cosine_schedule(step, start=1e-2, end=1e-6, num_steps=10, warmup_steps=2)
    )
    assert weight_decay == pytest.approx(cosine_schedule(step, start=0.1, end=0.2, num_steps=10))
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(lr * group["lr_share"])
        assert group["weight_decay"] == (weight_decay if group["decays"] else 0.0)


def test_constant_schedule_stays_at_its_peak_after_warmup() -> None:
    config = OptimConfig(lr=1e-2, lr_rule="constant", schedule="constant", warmup_steps=4)
    groups = make_optimizer(nn.Linear(2, 2), config).param_groups
    rates = [
        set_schedules(groups, config, step=step, num_steps=20, images_per_step=8)[0]
        for step in range(20)
    ]
    assert rates[:4] == pytest.approx([1e-2 * (step + 1) / 5 for step in range(4)])
    assert rates[4:] == pytest.approx([1e-2] * 16)


def test_warmup_takes_at_most_half_of_a_short_run() -> None:
    config = OptimConfig(lr=1e-2, lr_rule="constant", warmup_steps=100)
    groups = make_optimizer(nn.Linear(2, 2), config).param_groups
    rates = [
        set_schedules(groups, config, step=step, num_steps=10, images_per_step=8)[0]
        for step in range(10)
    ]
    assert max(rates) == rates[5] == pytest.approx(1e-2)
    assert rates[9] == pytest.approx(config.min_lr)


@pytest.mark.parametrize(
    ("rule", "images", "factor"),
    [("linear", 512, 2.0), ("sqrt", 4096, 2.0), ("constant", 512, 1.0)],
)
def test_peak_rate_follows_its_rule(rule: Any, images: int, factor: float) -> None:
    config = dataclasses.replace(OptimConfig(lr=1e-3), lr_rule=rule)
    assert peak_lr(config, images) == pytest.approx(factor * 1e-3)


def test_each_phase_has_its_own_warmup() -> None:
    config = OptimConfig(lr=1e-2, lr_rule="constant", schedule="constant", warmup_steps=4)
    groups = make_optimizer(nn.Linear(2, 2), config).param_groups
    rates = [
        set_schedules(groups, config, step=step, num_steps=20, images_per_step=8, phase_start=10)[0]
        for step in range(10, 20)
    ]
    assert rates[:4] == pytest.approx([1e-2 * (step + 1) / 5 for step in range(4)])
    assert rates[4:] == pytest.approx([1e-2] * 6)
