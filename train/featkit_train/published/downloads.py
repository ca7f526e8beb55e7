"""Weights from the hub or from their authors' server, kept in the caches that huggingface_hub and torch share with others.

Nothing is fetched but what a command was asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from featkit.atomic import replace_file
from featkit.errors import EnvironmentProblem
from featkit_train.published.zoo import Published

SAFETENSORS = "model.safetensors"
HUB_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors*")  # of several files, their index as well
CHUNK_BYTES = 1 << 20


def download(published: Published, *, quiet: bool = False) -> Path:
    """The file or folder with a published backbone's weights, fetched unless a cache holds it.

    EnvironmentProblem when it cannot be fetched, saying what to fetch by hand and how to pass it.
    """
    if published.hub is None:
        return _from_url(published, quiet=quiet)
    by_hand = f"featkit export {published.name} --weights FOLDER --out m.onnx"
    licence = published.licence if published.gated else None
    folder = fetch_repository(published.hub, HUB_FILES, quiet=quiet, by_hand=by_hand, licence=licence)
    if not any(folder.glob(HUB_FILES[-1])):
        raise EnvironmentProblem(_incomplete(folder, HUB_FILES, published.hub, by_hand))
    return folder


def download_timm(arch: str, settings: Mapping[str, Any], *, quiet: bool = False) -> Path:
    """model.safetensors of a timm model."""
    repository = str(settings.get("hf_hub_id") or "")
    if repository in ("", "timm/"):  # what timm has under the model's own name, and its tag even where the user gave none
        tag = str(settings.get("tag") or "")
        repository = f"timm/{arch}" if "." in arch or not tag else f"timm/{arch}.{tag}"
    by_hand = f"featkit export timm:{arch} --weights {SAFETENSORS} --out m.onnx"
    folder = fetch_repository(repository, (SAFETENSORS,), quiet=quiet, by_hand=by_hand)
    if not (folder / SAFETENSORS).is_file():
        raise EnvironmentProblem(_incomplete(folder, (SAFETENSORS,), repository, by_hand))
    return folder / SAFETENSORS


def fetch_repository(
    repository: str, files: tuple[str, ...], *, by_hand: str, quiet: bool = False, licence: str | None = None
) -> Path:
    """A folder with those files of a Hugging Face repository. `licence` is named where its owner has to let the user in."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if quiet:
        disable_progress_bars()
    elif not constants.HF_HUB_DISABLE_PROGRESS_BARS:  # which it would warn of
        enable_progress_bars()
    # A connection that breaks is an error of the HTTP library's own, whichever this release has: the base of its HTTP errors.
    broken = cast(type[Exception], HfHubHTTPError.__bases__[0])
    place = f"https://huggingface.co/{repository}"
    wanted = _by_hand(files, repository, by_hand)
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise EnvironmentProblem(
            f"{repository} is gated: its weights are under the {licence or 'licence of its page'}, which you have to accept at "
            f"{place}; then log in with `hf auth login` and repeat the command. Or, with the files at hand, `{by_hand}`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        terms = f" (gated: accept the {licence} there first)" if licence else ""
        raise EnvironmentProblem(f"{place} cannot be reached and no cache holds it; {wanted}{terms}.") from error
    except (broken, OSError) as error:
        raise EnvironmentProblem(f"{repository} could not be fetched ({first_line(error)}); {wanted}.") from error


def _by_hand(files: tuple[str, ...], repository: str, by_hand: str) -> str:
    place = f"https://huggingface.co/{repository}/tree/main"
    names = f"{', '.join(files[:-1])} and {files[-1]}" if len(files) > 1 else files[0]
    return f"fetch {names} from {place} elsewhere and pass them by `{by_hand}`"


def _incomplete(folder: Path, files: tuple[str, ...], repository: str, by_hand: str) -> str:
    """What a cache is that was filled in part and cannot be completed, or a repository without weights in this form."""
    return f"{folder} holds no {files[-1]} and it could not be fetched; {_by_hand(files, repository, by_hand)}."


def first_line(error: Exception) -> str:
    """What somebody else's exception says, fit to end a sentence with."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


def _from_url(published: Published, *, quiet: bool) -> Path:
    import torch  # for the place of its cache alone

    assert published.url is not None
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{published.name}{Path(published.url).suffix}"
    if path.is_file():
        return path
    try:
        with replace_file(path) as partial:
            _fetch(published.url, partial, quiet=quiet)
    except (HTTPException, OSError) as error:  # URLError is an OSError
        if isinstance(error, HTTPError):  # it holds the connection
            error.close()
        raise EnvironmentProblem(
            f"{published.url} could not be fetched ({first_line(error)}); fetch it elsewhere and pass it by "
            f"`featkit export {published.name} --weights {Path(published.url).name} --out m.onnx`."
        ) from error
    return path


def _fetch(url: str, place: Path, *, quiet: bool) -> None:
    """torch.hub has the same, but takes a connection that breaks for the end of the file. OSError when one breaks."""
    from rich.console import Console
    from rich.progress import wrap_file

    with urlopen(Request(url, headers={"User-Agent": "featkit"})) as answer, place.open("wb") as file:
        promised = int(answer.headers["Content-Length"] or 0)
        console, name = Console(stderr=True), url.rsplit("/", 1)[-1]
        with wrap_file(answer, total=promised, description=name, console=console, transient=True, disable=quiet) as stream:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)
        if promised and file.tell() != promised:
            raise OSError(f"the connection broke after {file.tell():,} of {promised:,} bytes")
