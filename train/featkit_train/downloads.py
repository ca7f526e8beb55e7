"""Weights from the hub or from their authors' server, kept in the caches that huggingface_hub and torch share with others.

Nothing is fetched but what a command was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from featkit.errors import EnvironmentProblem
from featkit_train.weight_files import CONFIG, INDEX, SAFETENSORS
from featkit_train.zoo import Published

HUB_FILES = (CONFIG, "preprocessor_config.json", INDEX, "model*.safetensors")


def download(published: Published, *, quiet: bool = False) -> Path:
    """The file or folder with a published backbone's weights, fetched unless a cache holds it.

    EnvironmentProblem when it cannot be fetched, saying what to fetch by hand and how to pass it.
    """
    if published.hub is None:
        return _from_url(published, quiet=quiet)
    return fetch_repository(
        published.hub,
        HUB_FILES,
        quiet=quiet,
        by_hand=f"featkit export {published.name} --weights FOLDER --out m.onnx",
        licence=published.licence if published.gated else None,
    )


def download_timm(arch: str, settings: Mapping[str, Any], *, quiet: bool = False) -> Path:
    """model.safetensors of a timm model."""
    repository = str(settings.get("hf_hub_id") or "")
    repository = f"timm/{arch}" if repository in ("", "timm/") else repository
    by_hand = f"featkit export timm:{arch} --weights {SAFETENSORS} --out m.onnx"
    return fetch_repository(repository, (SAFETENSORS,), quiet=quiet, by_hand=by_hand) / SAFETENSORS


def fetch_repository(
    repository: str, files: tuple[str, ...], *, by_hand: str, quiet: bool = False, licence: str | None = None
) -> Path:
    """A folder with those files of a Hugging Face repository. `licence` is named where its owner has to let the user in."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (disable_progress_bars if quiet else enable_progress_bars)()
    place = f"https://huggingface.co/{repository}"
    wanted = f"fetch {' and '.join(files)} from {place}/tree/main elsewhere and pass them: {by_hand}"
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise EnvironmentProblem(
            f"{repository} is gated: its weights are under the {licence or 'licence of its page'}, which you have to accept at "
            f"{place}; then log in with `hf auth login` and repeat the command. Or, with the files at hand, {by_hand}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        terms = f" (gated: accept the {licence} there first)" if licence else ""
        raise EnvironmentProblem(f"{place} cannot be reached and no cache holds it; {wanted}{terms}") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentProblem(f"{repository} could not be fetched ({reason}); {wanted}") from error


def _from_url(published: Published, *, quiet: bool) -> Path:
    assert published.url is not None
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"{published.name}{Path(published.url).suffix}"
    if path.is_file():
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(partial), progress=not quiet)
        partial.replace(path)
    except (URLError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise EnvironmentProblem(
            f"{published.url} could not be fetched ({error}); fetch it elsewhere and pass it: "
            f"featkit export {published.name} --weights {Path(published.url).name} --out m.onnx"
        ) from error
    return path
