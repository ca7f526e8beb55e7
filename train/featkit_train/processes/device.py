"""What a run computes on, and in which precision."""

from __future__ import annotations

import torch

from featkit.errors import EnvironmentProblem, InputError
from featkit.resources import usable_cpus


def pick_device(wanted: str) -> torch.device:
    """Return CUDA for `auto` where there is one, else the CPU; otherwise the device that was asked
    for and no other.

    InputError for a name that torch does not know; EnvironmentProblem for a device that this
    machine or this torch lacks.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(
            f"run.device is {wanted}, which torch does not know; use auto, cpu, cuda or cuda:1."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"run.device is {wanted}, but torch sees no CUDA device; use --device cpu or --device"
            " auto."
        )
    if (
        device.type == "cuda"
        and device.index is not None
        and device.index >= torch.cuda.device_count()
    ):
        last = torch.cuda.device_count() - 1
        raise EnvironmentProblem(
            f"run.device is {wanted}, but the last CUDA device here is cuda:{last}."
        )
    try:
        # raises for `meta`, and for what this torch is not built with
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EnvironmentProblem(
            f"run.device is {wanted}, which does not work with this torch; use cpu or cuda."
        ) from error
    return device


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it natively (`auto`), or where it was asked for; None
    is float32."""
    if precision == "float32":
        return None
    native = (
        device.type == "cuda"
        or torch.cpu._is_amx_tile_supported()
        or torch.cpu._is_avx512_bf16_supported()
    )
    return torch.bfloat16 if precision == "bfloat16" or native else None


def bound_threads() -> None:
    """Lower torch's number of threads to the processors this process may use; torch knows its
    affinity, but no quota."""
    if torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())
