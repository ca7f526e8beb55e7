"""Images of two kinds that differ in their color, and a config by which a small network tells
them apart in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from featkit_train.config import TrainConfig
from featkit_train.settings import from_mapping, parse_settings, with_settings
from tests.images import draw_image
from tests.torchvision_without_cuda import allow_torchvision

allow_torchvision()  # timm imports it

NO_COLORS = {
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": [0.0, 0.0, 0.0],
    "solarize_probability": [0.0, 0.0, 0.0],
}
LABELED = {
    "name": "small",
    "classifier": {
        "arch": "timm:resnet18",
        "options": {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 12]},
        "small_stem": True,
    },
    "crops": {"global_size": 32, "global_scale": [0.5, 1.0]},
    "color": NO_COLORS,
    "optim": {
        "lr": 0.01,
        "lr_rule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "weight_decay_end": 0.0,
    },
    "run": {
        "steps": 4,
        "batch_size": 8,
        "held_out": 8,
        "workers": 0,
        "device": "cpu",
        "precision": "float32",
        "log_every": 2,
        "evaluate_every": 4,
        "checkpoint_every": 2,
    },
}


def labeled_config(method: str, *settings: str) -> TrainConfig:
    """LABELED with settings of the form section.key=value."""
    return from_mapping(
        TrainConfig, with_settings({**LABELED, "method": method}, parse_settings(settings))
    )


def draw_kinds(
    root: Path, count: int, *, first: int = 0, kinds: tuple[str, ...] = ("blue", "red")
) -> Path:
    """`count` images a kind, in a folder each, tinted by it. first: another one gives other
    images."""
    for kind, tint in zip(kinds, np.eye(3)[: len(kinds), ::-1], strict=True):
        folder = root / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            pixels = np.asarray(draw_image(number, height=40, width=40), np.float64)
            mixed = 0.6 * pixels + 0.4 * 255 * tint
            Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root
