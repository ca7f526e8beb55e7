"""What a run computes on, and in which precision."""

from __future__ import annotations

import torch

from featkit.errors import InputError


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. InputError for one that is not there or unknown to torch."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("run.device is cuda, but torch sees no CUDA device; use --device cpu.")
    try:
        return torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"run.device is {wanted}, which torch does not know; use cpu, cuda or cuda:1.") from error


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it natively (`auto`), or where it was asked for; None is float32."""
    if precision == "float32":
        return None
    native = device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or native else None
