"""Download weights from the hub or from their authors' server into the usual caches.

The caches are those of huggingface_hub and torch, which other programs share. Only the files that a
command needs are downloaded, and a file that turns out to be something else is removed again.
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
# The last pattern matches the index of weights in several files, too.
HUB_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors*")
CHUNK_BYTES = 1 << 20
# What huggingface_hub raises for an answer in JSON that is not the hub's.
OTHER_JSON = (KeyError, TypeError, AttributeError, AssertionError)


def download(published: Published, *, quiet: bool = False) -> Path:
    """Return the file or folder with a published backbone's weights; download it if necessary.

    EnvironmentProblem if that fails, with what to download by hand and how to pass it.
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
    """Return the model.safetensors of a timm model; download it if necessary."""
    repository = str(settings.get("hf_hub_id") or "")
    # timm leaves out a repository with the model's own name; it has the tag of the default weights.
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
    """Return a folder with those files of a Hugging Face repository.

    by_hand: the command that takes files downloaded by hand. license: of a gated repository.
    EnvironmentProblem if they cannot be downloaded, with what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    _show_progress(not quiet)
    # A broken connection raises an error of the HTTP library that this release of huggingface_hub
    # uses, which is the base of its own HTTP errors.
    broken = cast(type[Exception], HfHubHTTPError.__bases__[0])
    address = f"https://huggingface.co/{repository}"
    advice = _by_hand(files, repository, by_hand)
    started = time.time()
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files)))
    except HFValidationError as error:
        raise InputError(
            f"{repository} is not the name of a repository. Write OWNER/NAME."
        ) from error
    except OfflineModeIsEnabled as error:
        raise EnvironmentProblem(_out_of_reach(address, advice, license)) from error
    # The HTTP library's errors are not OSErrors. A login page in place of JSON raises ValueError;
    # unexpected JSON raises one of OTHER_JSON.
    except (
        LocalEntryNotFoundError,
        broken,
        OSError,
        ValueError,
        *OTHER_JSON,
    ) as error:
        message = _why_not(error, repository, advice, license)
        raise EnvironmentProblem(message) from error
    _check_sums(folder, since=started)
    return folder


def _show_progress(wanted: bool) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if not wanted:
        disable_progress_bars()
    elif not constants.HF_HUB_DISABLE_PROGRESS_BARS:  # enabling them would warn of the variable
        enable_progress_bars()


def _why_not(error: Exception, repository: str, advice: str, license: str | None) -> str:
    """Return a message on a failed download: why it failed and what to do."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    address = f"https://huggingface.co/{repository}"
    failure = why_failed(error)
    is_forbidden = failure is not None and failure.status in (401, 403)
    if isinstance(error, GatedRepoError) or (license and is_forbidden):
        return (
            f"{repository} is gated. Accept the {license or 'license on its page'} at {address},"
            f" log in with `hf auth login`, and repeat the command. Or {advice}."
        )
    if failure is None and isinstance(error, OTHER_JSON):
        failure = NO_HUB
    if failure is not None:
        return f"{address} {failure.what}; {failure.advice}. Or {advice}."
    if isinstance(error, LocalEntryNotFoundError):
        return _out_of_reach(address, advice, license)
    return f"{repository} could not be downloaded ({first_line(error)}); {advice}."


def _out_of_reach(address: str, advice: str, license: str | None) -> str:
    terms = f" (gated: accept the {license} there first)" if license else ""
    return f"{address} cannot be reached, and the files are not in the cache; {advice}{terms}."


def _check_sums(folder: Path, *, since: float) -> None:
    """Compare files that were just downloaded with the sha256 in their names in the cache.

    huggingface_hub does not check it. EnvironmentProblem if one differs; the file is removed, so
    that the next command downloads it again.
    """
    for path in folder.rglob("*"):
        blob = path.resolve()
        if not re.fullmatch(r"[0-9a-f]{64}", blob.name) or blob.stat().st_mtime < since - 1:
            continue
        digest = sha256_of(blob)
        if digest != blob.name:
            blob.unlink()
            path.unlink(missing_ok=True)
            raise EnvironmentProblem(
                f"{path.name} arrived with the sha256 {digest[:12]}…, but the hub lists"
                f" {blob.name[:12]}…, so it was removed; repeat the command. If it happens again,"
                " something between the hub and this machine changes downloads."
            )


def _by_hand(files: tuple[str, ...], repository: str, by_hand: str) -> str:
    address = f"https://huggingface.co/{repository}/tree/main"
    names = f"{', '.join(files[:-1])} and {files[-1]}" if len(files) > 1 else files[0]
    return f"download {names} from {address} on another machine and use them with `{by_hand}`"


def _incomplete(folder: Path, files: tuple[str, ...], repository: str, by_hand: str) -> str:
    """Return a message on a half-filled cache, or on a repository without weights in this form."""
    return (
        f"{folder} does not have {files[-1]}, and it could not be downloaded;"
        f" {_by_hand(files, repository, by_hand)}."
    )


def _from_url(published: Published, *, quiet: bool) -> Path:
    import torch  # only for the location of its cache

    assert published.url is not None
    path = (
        Path(torch.hub.get_dir()) / "checkpoints" / f"{published.name}{Path(published.url).suffix}"
    )
    if path.is_file():
        return path
    by_hand = (
        f"download it on another machine and use it with `featkit export {published.name} --weights"
        f" {Path(published.url).name} --out m.onnx`"
    )
    try:
        with replace_file(path) as partial:
            _fetch(published.url, partial, quiet=quiet)
            _check_weights(partial, published.url, by_hand)
    except (HTTPException, OSError) as error:  # urllib's URLError is an OSError
        if isinstance(error, HTTPError):  # it keeps the connection open
            error.close()
        failure = why_failed(error)
        if failure is not None:
            raise EnvironmentProblem(
                f"{published.url} {failure.what}; {failure.advice}. Or {by_hand}."
            ) from error
        raise EnvironmentProblem(
            f"{published.url} could not be downloaded ({first_line(error)}); {by_hand}."
        ) from error
    return path


def _check_weights(file: Path, url: str, by_hand: str) -> None:
    """Raise EnvironmentProblem if a download is a web page, a message or a part of the file.

    Such a file must not stay in the cache.
    """
    with file.open("rb") as stream:
        kind = what_is(stream.read(NUM_BYTES))
    if kind in (HTML, XML, XML_ERROR, JSON, TEXT):
        raise EnvironmentProblem(
            f"{url} answered with {kind.name} instead of the weights. It may be a login page of the"
            " network: open the address in a browser, log in, and repeat the command. Or"
            f" {by_hand}."
        )
    try:
        read_weights(file)
    except InputError as error:
        raise EnvironmentProblem(
            f"{url} sent a file that is damaged or cut short. Repeat the command, or {by_hand}."
        ) from error


def _fetch(url: str, path: Path, *, quiet: bool) -> None:
    """Download a file. OSError if the connection breaks.

    torch.hub's download takes a broken connection for the end of the file.
    """
    from rich.console import Console
    from rich.progress import wrap_file

    with (
        urlopen(Request(url, headers={"User-Agent": "featkit"})) as answer,
        path.open("wb") as file,
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
