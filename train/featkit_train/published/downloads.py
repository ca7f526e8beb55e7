"""Weights from the hub or from their authors' server, kept in the caches that huggingface_hub and
torch share with others.

Nothing is fetched but what a command was asked for, and nothing stays in a cache that is not what
was asked for.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from featkit.atomic import replace_file
from featkit.digests import sha256_of
from featkit.downloading import NO_HUB, why_failed
from featkit.errors import EnvironmentProblem, InputError
from featkit.filetypes import HTML, JSON, NUM_BYTES, TEXT, XML, XML_ERROR, what_is
from featkit.wording import counted, first_line
from featkit_train.published.weight_files import read_weights
from featkit_train.published.zoo import Published

SAFETENSORS = "model.safetensors"
# of several files, their index as well
HUB_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors*")
CHUNK_BYTES = 1 << 20


def download(published: Published, *, quiet: bool = False) -> Path:
    """The file or folder with a published backbone's weights, fetched unless a cache holds it.

    EnvironmentProblem when it cannot be fetched, saying what to fetch by hand and how to pass it.
    """
    if published.hub is None:
        return _from_url(published, quiet=quiet)
    by_hand = f"featkit export {published.name} --weights FOLDER --out m.onnx"
    license = published.license if published.gated else None
    folder = fetch_repository(
        published.hub, HUB_FILES, quiet=quiet, by_hand=by_hand, license=license
    )
    if not any(folder.glob(HUB_FILES[-1])):
        raise EnvironmentProblem(_incomplete(folder, HUB_FILES, published.hub, by_hand))
    return folder


def download_timm(arch: str, settings: Mapping[str, Any], *, quiet: bool = False) -> Path:
    """model.safetensors of a timm model."""
    repository = str(settings.get("hf_hub_id") or "")
    # what timm has under the model's own name, and its tag even where the user gave none
    if repository in ("", "timm/"):
        tag = str(settings.get("tag") or "")
        repository = f"timm/{arch}" if "." in arch or not tag else f"timm/{arch}.{tag}"
    by_hand = f"featkit export timm:{arch} --weights {SAFETENSORS} --out m.onnx"
    folder = fetch_repository(repository, (SAFETENSORS,), quiet=quiet, by_hand=by_hand)
    if not (folder / SAFETENSORS).is_file():
        raise EnvironmentProblem(_incomplete(folder, (SAFETENSORS,), repository, by_hand))
    return folder / SAFETENSORS


def fetch_repository(
    repository: str,
    files: tuple[str, ...],
    *,
    by_hand: str,
    quiet: bool = False,
    license: str | None = None,
) -> Path:
    """A folder with those files of a Hugging Face repository. `license` is named where its owner
    has to let the user in."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if quiet:
        disable_progress_bars()
    elif not constants.HF_HUB_DISABLE_PROGRESS_BARS:  # which it would warn of
        enable_progress_bars()
    # A connection that breaks is an error of the HTTP library's own, whichever this release has:
    # the base of its HTTP errors.
    broken = cast(type[Exception], HfHubHTTPError.__bases__[0])
    place = f"https://huggingface.co/{repository}"
    wanted = _by_hand(files, repository, by_hand)
    started = time.time()
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files)))
    except HFValidationError as error:
        raise InputError(
            f"{repository} is not the name of a repository, which is OWNER/NAME."
        ) from error
    except OfflineModeIsEnabled as error:
        raise EnvironmentProblem(_out_of_reach(place, wanted, license)) from error
    # An HTTP library's own errors are no OSError, and a page in place of an answer is a ValueError.
    except (
        LocalEntryNotFoundError,
        broken,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        failure = why_failed(error)
        if isinstance(error, GatedRepoError) or (
            license and failure is not None and failure.status in (401, 403)
        ):
            raise EnvironmentProblem(
                f"{repository} is gated: its weights are under the"
                f" {license or 'license of its page'}, which you have to accept at {place}; then"
                " log in with `hf auth login` and repeat the command. Or, with the files at hand,"
                f" `{by_hand}`."
            ) from error
        if failure is not None:
            raise EnvironmentProblem(
                f"{place} {failure.what}; {failure.advice}. Or {wanted}."
            ) from error
        # JSON, but another server's
        if isinstance(error, KeyError | TypeError | AttributeError | AssertionError):
            raise EnvironmentProblem(
                f"{place} {NO_HUB.what}; {NO_HUB.advice}. Or {wanted}."
            ) from error
        if isinstance(error, LocalEntryNotFoundError):
            raise EnvironmentProblem(_out_of_reach(place, wanted, license)) from error
        raise EnvironmentProblem(
            f"{repository} could not be fetched ({first_line(error)}); {wanted}."
        ) from error
    _check_sums(folder, since=started)
    return folder


def _out_of_reach(place: str, wanted: str, license: str | None) -> str:
    terms = f" (gated: accept the {license} there first)" if license else ""
    return f"{place} cannot be reached and no cache holds it; {wanted}{terms}."


def _check_sums(folder: Path, *, since: float) -> None:
    """Compare files that were fetched just now with the sums that the hub names them by, which its
    client does not.

    EnvironmentProblem for another sum; the file is removed, so that it is fetched again.
    """
    for path in folder.rglob("*"):
        blob = path.resolve()
        if not re.fullmatch(r"[0-9a-f]{64}", blob.name) or blob.stat().st_mtime < since - 1:
            continue
        found = sha256_of(blob)
        if found != blob.name:
            blob.unlink()
            path.unlink(missing_ok=True)
            raise EnvironmentProblem(
                f"{path.name} arrived with the sha256 {found[:12]}…, not {blob.name[:12]}… as the"
                " hub says, and was removed; repeat the command. If it happens again, something on"
                " the way changes downloads."
            )


def _by_hand(files: tuple[str, ...], repository: str, by_hand: str) -> str:
    place = f"https://huggingface.co/{repository}/tree/main"
    names = f"{', '.join(files[:-1])} and {files[-1]}" if len(files) > 1 else files[0]
    return f"fetch {names} from {place} elsewhere and pass them by `{by_hand}`"


def _incomplete(folder: Path, files: tuple[str, ...], repository: str, by_hand: str) -> str:
    """What a cache is that was filled in part and cannot be completed, or a repository without
    weights in this form."""
    return (
        f"{folder} holds no {files[-1]} and it could not be fetched;"
        f" {_by_hand(files, repository, by_hand)}."
    )


def _from_url(published: Published, *, quiet: bool) -> Path:
    import torch  # for the place of its cache alone

    assert published.url is not None
    path = (
        Path(torch.hub.get_dir()) / "checkpoints" / f"{published.name}{Path(published.url).suffix}"
    )
    if path.is_file():
        return path
    by_hand = (
        f"fetch it elsewhere and pass it by `featkit export {published.name} --weights"
        f" {Path(published.url).name} --out m.onnx`"
    )
    try:
        with replace_file(path) as partial:
            _fetch(published.url, partial, quiet=quiet)
            _check_weights(partial, published.url, by_hand)
    except (HTTPException, OSError) as error:  # URLError is an OSError
        if isinstance(error, HTTPError):  # it holds the connection
            error.close()
        failure = why_failed(error)
        if failure is not None:
            raise EnvironmentProblem(
                f"{published.url} {failure.what}; {failure.advice}. Or {by_hand}."
            ) from error
        raise EnvironmentProblem(
            f"{published.url} could not be fetched ({first_line(error)}); {by_hand}."
        ) from error
    return path


def _check_weights(file: Path, url: str, by_hand: str) -> None:
    """EnvironmentProblem for a page, a message or a part of a file in place of the weights, which
    must not stay in a cache."""
    with file.open("rb") as stream:
        kind = what_is(stream.read(NUM_BYTES))
    if kind in (HTML, XML, XML_ERROR, JSON, TEXT):
        raise EnvironmentProblem(
            f"{url} answered with {kind.name} in place of the weights, such as a login page of the"
            " network; open it in a browser, log in to the network, and repeat the command. Or"
            f" {by_hand}."
        )
    try:
        read_weights(file)
    except InputError as error:
        raise EnvironmentProblem(
            f"{url} sent a file that is damaged or cut short; repeat the command, or {by_hand}."
        ) from error


def _fetch(url: str, place: Path, *, quiet: bool) -> None:
    """torch.hub has the same, but takes a connection that breaks for the end of the file. OSError
    when one breaks."""
    from rich.console import Console
    from rich.progress import wrap_file

    with (
        urlopen(Request(url, headers={"User-Agent": "featkit"})) as answer,
        place.open("wb") as file,
    ):
        promised = int(answer.headers["Content-Length"] or 0)
        console, name = Console(stderr=True), url.rsplit("/", 1)[-1]
        with wrap_file(
            answer, total=promised, description=name, console=console, transient=True, disable=quiet
        ) as stream:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)
        if promised and file.tell() != promised:
            raise OSError(
                f"the connection broke after {file.tell():,} of {counted(promised, 'byte')}"
            )
