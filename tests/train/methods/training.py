"""Small methods with drawn weights, batches for them, and a step without an optimizer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from featkit_train.config import TrainConfig
from featkit_train.methods import Generators, MomentumTeacher, StepResult, Targets, Views
from tests.train.momentum import make_teacher
from tests.train.small import small_config

BATCH = 5
MODEL = ("model.num_registers=2", "model.layer_scale=0.5")
OWN_HEAD = "ibot.head={num_prototypes: 12, hidden_width: 20, bottleneck_width: 8}"
# hidden patches of each of the 2 * BATCH global crops, of 16
MASK_NUMBERS = (0, 1, 16, 5, 9, 0, 16, 2, 1, 7)


def of(method: str, *settings: str) -> TrainConfig:
    """Return the small config with registers and LayerScale, without KoLeo."""
    return small_config(f"method={method}", "dino.koleo_weight=0.0", *MODEL, *settings)


def drawn_method(config: TrainConfig, *, seed: int = 0) -> MomentumTeacher:
    """Create a method and draw every parameter and center, so that student and teacher differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = make_teacher(config)
    draw(method, seed=seed)
    return method


@torch.no_grad()
def draw(module: nn.Module, *, seed: int = 0) -> None:
    """Draw weights that keep activations near 1, and tokens and centers that differ from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(0.3 * noise)
        else:
            token = name.endswith(("token", "registers", "class_position", "patch_positions"))
            parameter.copy_(0.5 * noise if token else noise / parameter[0].numel() ** 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("center"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def some_masks() -> Tensor:
    """Return masks (G, B, h, w) that hide no patch, one, some, or all."""
    generator = torch.Generator().manual_seed(11)
    masks = torch.zeros(2 * BATCH, 16, dtype=torch.bool)
    for row, number in zip(masks, MASK_NUMBERS, strict=True):
        row[torch.randperm(16, generator=generator)[:number]] = True
    return masks.view(2, BATCH, 4, 4)


def random_views(
    *, seed: int = 0, masks: Tensor | None = None, gram_size: int | None = None
) -> Views:
    """Draw two global crops of 32 pixels and two local ones of 16."""
    generator = torch.Generator().manual_seed(seed)
    masks = some_masks() if masks is None else masks
    return Views(
        torch.randn(2, BATCH, 3, 32, 32, generator=generator),
        torch.randn(2, BATCH, 3, 16, 16, generator=generator),
        masks,
        masks.flatten().nonzero().flatten(),
        (
            torch.randn(2, BATCH, 3, gram_size, gram_size, generator=generator)
            if gram_size
            else torch.zeros(0, 1, 3, 1, 1)
        ),
        torch.stack([torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64)]),
    )


def unmasked_views() -> Views:
    """Return views without masks."""
    return random_views(masks=torch.zeros(2, BATCH, 4, 4, dtype=torch.bool))


def generators(seed: int = 0) -> Generators:
    """Return generators seeded with `seed`."""
    return Generators(np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1]))


def take_step(method: MomentumTeacher, views: Views, *, step: int) -> tuple[StepResult, Targets]:
    """Compute targets, loss and gradients without an optimizer step."""
    method.enter_phase(step)
    targets, _ = method.make_targets([method.teacher_forward(views)], step=step)
    result: StepResult = method(views, targets[0], generators())
    method.zero_grad()
    result.loss.backward()
    return result, targets[0]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all gradients by name."""
    return {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert equal gradients, apart from key biases, whose gradients are rounding noise."""
    assert ours.keys() == expected.keys()
    assert ours
    for name, gradient in ours.items():
        if name.endswith("qkv.bias"):
            rows = len(gradient) // 3
            gradient, reference = (
                torch.cat([g[:rows], g[2 * rows :]]) for g in (gradient, expected[name])
            )
        else:
            reference = expected[name]
        scale = float(reference.norm())
        assert scale > 1e-4 or gradient.numel() == 0, f"{name} does not matter here"
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4 * scale, msg=name)


def cross_entropy(
    teacher_probs: Tensor, student_logits: Tensor, *, student_temp: float = 0.1
) -> Tensor:
    """Return the cross-entropy H(t, s) of one row each."""
    return -(teacher_probs * torch.log_softmax(student_logits / student_temp, dim=-1)).sum()
