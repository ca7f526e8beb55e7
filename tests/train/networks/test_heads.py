"""Promises of the projection head: equal to lightly's, what of a prototype counts, and what holds
at any size and scale."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            )
    return head


def features(width: int = 13, *, batch: int = 5) -> Tensor:
    """(B, D) that ask for a gradient."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(9)).requires_grad_()


def lightly_head(ours: ProjectionHead) -> Any:
    """lightly's head with our weights; prototypes are its weight_v, and gains its weight_g, fixed
    to 1 where we have none."""
    heads = import_quietly("lightly.models.modules.heads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses the older weight_norm
        head = heads.DINOProjectionHead(
            13,
            CONFIG.hidden_width,
            CONFIG.bottleneck_width,
            CONFIG.num_prototypes,
            norm_last_layer=ours.gains is None,
        )
    state = {
        name.replace("mlp.", "layers."): tensor
        for name, tensor in ours.state_dict().items()
        if name.startswith("mlp.")
    }
    state["last_layer.weight_v"] = ours.prototypes.detach()
    state["last_layer.weight_g"] = (
        torch.ones(CONFIG.num_prototypes, 1) if ours.gains is None else ours.gains.detach()
    )
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
        torch.testing.assert_close(
            parameter.grad, theirs.get_parameter(their_name).grad, rtol=1e-4, atol=1e-6
        )
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
    expected = torch.stack(
        [F.cosine_similarity(hidden, prototype[None], dim=1) for prototype in head.prototypes],
        dim=1,
    )
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


def test_logits_do_not_depend_on_the_bottlenecks_length() -> None:
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
    ("prototypes", "names"),
    [("unit", {"prototypes"}), ("gain", {"prototypes", "gains"}), ("free", {"prototypes"})],
)
def test_the_last_layer_is_what_a_prototype_is_made_of(prototypes: Any, names: set[str]) -> None:
    head = ProjectionHead(13, dataclasses.replace(CONFIG, prototypes=prototypes))
    ours = {parameter: name for name, parameter in head.named_parameters()}
    assert {ours[parameter] for parameter in head.last_layer()} == names


# -- at any size and scale, in float64, so that rounding does not matter ---------------------------

KINDS: st.SearchStrategy[Any] = st.sampled_from(["unit", "gain", "free"])
WIDTHS, SEEDS = st.integers(1, 24), st.integers(0, 10_000)
# of 10, the scale of features: those of a backbone's last norm are near 1
EXPONENTS = st.integers(-4, 4)


@st.composite
def configs(draw: st.DrawFn) -> HeadConfig:
    """Sizes down to one prototype, one channel and one layer."""
    return HeadConfig(
        num_prototypes=draw(st.integers(1, 20)),
        hidden_width=draw(st.integers(1, 24)),
        bottleneck_width=draw(st.integers(1, 12)),
        num_layers=draw(st.integers(1, 4)),
        prototypes=draw(KINDS),
    )


def scaled_features(width: int, *, batch: int, exponent: int, seed: int) -> Tensor:
    """(B, D) float64 of the scale 10 ** exponent."""
    generator = torch.Generator().manual_seed(seed)
    return 10.0**exponent * torch.randn(batch, width, generator=generator, dtype=torch.float64)


def linear_head(config: HeadConfig, *, width: int, seed: int) -> ProjectionHead:
    """A drawn head of one layer without a bias, whose bottleneck is as long as its features are."""
    head = drawn_head(dataclasses.replace(config, num_layers=1), width=width, seed=seed).double()
    (last,) = head.mlp
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.zero_()
    return head


@settings(max_examples=50, deadline=None)
@given(config=configs(), width=WIDTHS, batch=st.integers(1, 9), exponent=EXPONENTS, seed=SEEDS)
def test_logits_are_cosines_times_the_kind_of_length(
    config: HeadConfig, width: int, batch: int, exponent: int, seed: int
) -> None:
    head = drawn_head(config, width=width, seed=seed).double()
    rows = scaled_features(width, batch=batch, exponent=exponent, seed=seed)
    logits, bottleneck = head(rows), head.mlp(rows)
    lengths = {
        "unit": torch.ones(config.num_prototypes, dtype=torch.float64),
        "gain": head.prototypes.new_ones(1) if head.gains is None else head.gains[:, 0],
        "free": torch.linalg.vector_norm(head.prototypes, dim=1),
    }[config.prototypes]
    assert logits.shape == (batch, config.num_prototypes)
    assert (logits.abs() <= lengths.abs() * (1 + 1e-12)).all()
    norms = torch.linalg.vector_norm(bottleneck, dim=1)[:, None] * torch.linalg.vector_norm(
        head.prototypes, dim=1
    )
    torch.testing.assert_close(
        logits, bottleneck @ head.prototypes.T / norms * lengths, rtol=0, atol=1e-9
    )


@settings(max_examples=50, deadline=None)
@given(config=configs(), width=WIDTHS, batch=st.integers(1, 9), exponent=EXPONENTS, seed=SEEDS)
def test_the_bottleneck_is_a_unit_vector(
    config: HeadConfig, width: int, batch: int, exponent: int, seed: int
) -> None:
    config = dataclasses.replace(config, num_prototypes=config.bottleneck_width)
    head = drawn_head(config, width=width, seed=seed).double()
    with torch.no_grad():  # prototypes that are the axes give the bottleneck itself
        head.prototypes.copy_(torch.eye(config.bottleneck_width))
        if head.gains is not None:
            head.gains.fill_(1.0)
    lengths = torch.linalg.vector_norm(
        head(scaled_features(width, batch=batch, exponent=exponent, seed=seed)), dim=1
    )
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(config=configs(), width=WIDTHS, factor=st.floats(1e-4, 1e4), seed=SEEDS)
def test_a_linear_head_ignores_the_length_of_features(
    config: HeadConfig, width: int, factor: float, seed: int
) -> None:
    head = linear_head(config, width=width, seed=seed)
    rows = scaled_features(width, batch=5, exponent=0, seed=seed)
    logits = head(rows)
    torch.testing.assert_close(head(factor * rows), logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(head(-factor * rows), -logits, rtol=0, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(config=configs(), exponent=st.integers(-3, 6), seed=SEEDS)
def test_a_large_step_keeps_the_length_of_prototypes(
    config: HeadConfig, exponent: int, seed: int
) -> None:
    # the length of free ones is theirs to change
    kind: Any = "unit" if config.prototypes == "free" else config.prototypes
    width = config.bottleneck_width
    head = linear_head(dataclasses.replace(config, prototypes=kind), width=width, seed=seed)
    axes = torch.eye(width, dtype=torch.float64)
    (last,) = head.mlp
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(axes)
    before = head(axes)  # (D, K): a column is a prototype as it counts
    (
        before * scaled_features(config.num_prototypes, batch=width, exponent=0, seed=seed)
    ).sum().backward()
    assert head.prototypes.grad is not None
    with torch.no_grad():
        head.prototypes.sub_(10.0**exponent * head.prototypes.grad)
    after = head(axes)
    wanted = (
        torch.ones(config.num_prototypes, dtype=torch.float64)
        if head.gains is None
        else head.gains[:, 0].abs()
    )
    for columns in (before, after):
        torch.testing.assert_close(
            torch.linalg.vector_norm(columns, dim=0), wanted, rtol=1e-9, atol=0
        )
    if width > 1:  # else a direction is a sign, which no gradient turns
        assert not torch.equal(after, before)


@settings(max_examples=50, deadline=None)
@given(config=configs(), width=WIDTHS, batch=st.integers(1, 9), exponent=EXPONENTS, seed=SEEDS)
def test_logits_do_not_depend_on_the_rest_of_the_batch(
    config: HeadConfig, width: int, batch: int, exponent: int, seed: int
) -> None:
    head = drawn_head(config, width=width, seed=seed).double().train()
    rows = scaled_features(width, batch=batch, exponent=exponent, seed=seed)
    alone = torch.cat([head(row[None]) for row in rows])
    torch.testing.assert_close(head(rows), alone, rtol=0, atol=1e-9)
