"""The device and precision of a run, and its number of threads."""

from __future__ import annotations

import torch

from featkit.errors import EnvironmentProblem, InputError
from featkit.resources import usable_cpus


def pick_device(wanted: str) -> torch.device:
    """Return the wanted device; `auto` is CUDA if available, else the CPU.

    InputError for a name that torch does not know. EnvironmentProblem for a device that this
    machine or this build of torch lacks; no other device replaces it.
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
        # Raises for `meta`, and for devices that this torch was built without.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EnvironmentProblem(
            f"run.device is {wanted}, which does not work with this torch; use cpu or cuda."
        ) from error
    return device


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 if requested, or for `auto` if the hardware multiplies it natively; None
    means float32."""
    if precision == "float32":
        return None
    native = (
        device.type == "cuda"
        or torch.cpu._is_amx_tile_supported()
        or torch.cpu._is_avx512_bf16_supported()
    )
    return torch.bfloat16 if precision == "bfloat16" or native else None


def bound_threads() -> None:
    """Limit torch to the processors that this process may use."""
    # torch respects the CPU affinity, but not a container's quota.
    if torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())
