"""A training config of a second or two, with every part of the real one in it."""

from __future__ import annotations

from featkit_train.config import TrainConfig
from featkit_train.settings import from_mapping, parse_settings, with_settings

SMALL = {
    "name": "small",
    "model": {
        "patch": 8,
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "mlp_width": 48,
        "position_grid": 4,
    },
    "crops": {
        "global_size": 32,
        "local_size": 16,
        "num_local": 2,
        "global_scale": [0.4, 1.0],
        "rotation_degrees": 15.0,
    },
    "optim": {"lr": 1e-3, "lr_rule": "constant", "warmup_steps": 2},
    "dino": {
        "head": {"num_prototypes": 16, "hidden_width": 32, "bottleneck_width": 16},
        "freeze_last_layer_steps": 1,
        "koleo_weight": 0.05,
    },
    "teacher": {"momentum": 0.9, "momentum_end": 1.0},
    "run": {
        "steps": 8,
        "batch_size": 8,
        "held_out": 4,
        "workers": 0,
        "device": "cpu",
        # on processors with bfloat16, too: equal steps are equal to float32's rounding there as
        # well
        "precision": "float32",
        "log_every": 1,
        "evaluate_every": 4,
        "checkpoint_every": 3,
    },
}


def small_config(*settings: str) -> TrainConfig:
    """SMALL with settings of the form section.key=value."""
    return from_mapping(TrainConfig, with_settings(SMALL, parse_settings(settings)))
