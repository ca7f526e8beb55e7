"""Promises of the projection head: equal to lightly's, and what of a prototype counts."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit_train.networks.heads import HeadConfig, ProjectionHead
from tests.torchvision_without_cuda import import_quietly

CONFIG = HeadConfig(num_prototypes=11, hidden_width=20, bottleneck_width=7)


def drawn_head(config: HeadConfig = CONFIG, *, width: int = 13, seed: int = 0) -> ProjectionHead:
    """A head with every parameter drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    head = ProjectionHead(width, config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return head


def features(width: int = 13, *, batch: int = 5) -> Tensor:
    """(B, D) that ask for a gradient."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(9)).requires_grad_()


def lightly_head(ours: ProjectionHead) -> Any:
    """lightly's head with our weights; prototypes are its weight_v, and gains its weight_g, fixed to 1 where we have none."""
    heads = import_quietly("lightly.models.modules.heads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses the older weight_norm
        head = heads.DINOProjectionHead(
            13, CONFIG.hidden_width, CONFIG.bottleneck_width, CONFIG.num_prototypes, norm_last_layer=ours.gains is None
        )
    state = {name.replace("mlp.", "layers."): tensor for name, tensor in ours.state_dict().items() if name.startswith("mlp.")}
    state["last_layer.weight_v"] = ours.prototypes.detach()
    state["last_layer.weight_g"] = torch.ones(CONFIG.num_prototypes, 1) if ours.gains is None else ours.gains.detach()
    head.load_state_dict(state)
    return head


@pytest.mark.parametrize("prototypes", ["unit", "gain"])
def test_the_head_equals_lightlys_in_values_and_gradients(prototypes: Any) -> None:
    ours = drawn_head(dataclasses.replace(CONFIG, prototypes=prototypes))
    theirs = lightly_head(ours)
    our_features, their_features = features(), features()
    logits, expected = ours(our_features), theirs(their_features)
    torch.testing.assert_close(logits, expected)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(our_features.grad, their_features.grad)
    for name, parameter in ours.named_parameters():
        last = {"prototypes": "last_layer.weight_v", "gains": "last_layer.weight_g"}
        their_name = last.get(name, name.replace("mlp.", "layers."))
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(their_name).grad, rtol=1e-4, atol=1e-6)
        assert parameter.grad.abs().max() > 1e-3, name


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_any_number_of_layers_equals_a_plain_loop(num_layers: int) -> None:
    config = HeadConfig(num_prototypes=6, hidden_width=9, bottleneck_width=4, num_layers=num_layers)
    head, rows = drawn_head(config), features()
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    assert len(linears) == num_layers
    hidden = rows
    for number, linear in enumerate(linears):
        hidden = hidden @ linear.weight.T + linear.bias
        if number < num_layers - 1:
            hidden = F.gelu(hidden)
    expected = torch.stack([F.cosine_similarity(hidden, prototype[None], dim=1) for prototype in head.prototypes], dim=1)
    torch.testing.assert_close(head(rows), expected)


def test_prototypes_count_by_direction_alone() -> None:
    head, rows = drawn_head(), features()
    before = head(rows).detach()
    with torch.no_grad():
        head.prototypes.mul_(torch.linspace(0.01, 100.0, CONFIG.num_prototypes)[:, None])
    torch.testing.assert_close(head(rows), before)
    head(rows).square().sum().backward()
    assert head.prototypes.grad is not None
    along = (head.prototypes.grad * F.normalize(head.prototypes.detach(), dim=-1)).sum(dim=-1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-4)


def test_logits_are_cosines_that_the_bottlenecks_length_does_not_change() -> None:
    head, rows = drawn_head(), features()
    before = head(rows).detach()
    assert before.abs().max() <= 1 + 1e-6
    last = head.mlp[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(7.0)
        last.bias.mul_(7.0)
    torch.testing.assert_close(head(rows), before)
    with torch.no_grad():
        head.prototypes[3] = last(head.mlp[:-1](rows[2]))
    assert head(rows)[2, 3].item() == pytest.approx(1.0, abs=1e-5)


def test_an_empty_bottleneck_stays_finite() -> None:
    head = drawn_head()
    with torch.no_grad():
        for parameter in head.mlp.parameters():
            parameter.zero_()
    rows = features()
    logits = head(rows)
    assert torch.equal(logits, torch.zeros_like(logits))
    logits.sum().backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_new_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(64, HeadConfig(num_prototypes=128, hidden_width=96, bottleneck_width=32))
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert 0.018 < parameter.std().item() < 0.022, name


def test_free_prototypes_count_with_their_length() -> None:
    head, rows = drawn_head(dataclasses.replace(CONFIG, prototypes="free")), features()
    bottleneck = F.normalize(head.mlp(rows), dim=-1)
    torch.testing.assert_close(head(rows), bottleneck @ head.prototypes.T)
    before = head(rows).detach()
    with torch.no_grad():
        head.prototypes.mul_(3.0)
    torch.testing.assert_close(head(rows), 3.0 * before)


def test_gains_begin_at_one_and_are_the_length_that_counts() -> None:
    plain = drawn_head()
    head, rows = ProjectionHead(13, dataclasses.replace(CONFIG, prototypes="gain")), features()
    assert head.gains is not None
    assert torch.equal(head.gains, torch.ones(CONFIG.num_prototypes, 1))
    head.load_state_dict({**plain.state_dict(), "gains": torch.ones(CONFIG.num_prototypes, 1)})
    torch.testing.assert_close(head(rows), plain(rows))
    with torch.no_grad():
        head.gains.copy_(torch.arange(CONFIG.num_prototypes)[:, None])
    torch.testing.assert_close(head(rows), plain(rows) * torch.arange(CONFIG.num_prototypes))


@pytest.mark.parametrize(
    ("prototypes", "names"), [("unit", {"prototypes"}), ("gain", {"prototypes", "gains"}), ("free", {"prototypes"})]
)
def test_the_last_layer_is_what_a_prototype_is_made_of(prototypes: Any, names: set[str]) -> None:
    head = ProjectionHead(13, dataclasses.replace(CONFIG, prototypes=prototypes))
    ours = {parameter: name for name, parameter in head.named_parameters()}
    assert {ours[parameter] for parameter in head.last_layer()} == names
