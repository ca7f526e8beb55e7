"""`featkit demo`: open the search page."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_table, stdout, step_reporter
from featkit.cli.options import Host, Port, Quiet, Rehash, Retry
from featkit.cli.selecting import SelectionFlags, selection_of
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.folders import is_index
from featkit.wording import counted


def demo(
    photos: Path | None = None,
    /,
    *,
    model: str | None = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    browser: bool = True,
    cache: Path | None = None,
    retry: Retry = False,
    rehash: Rehash = False,
    quiet: Quiet = False,
    select: SelectionFlags | None = None,
) -> None:
    """Open the search page over PHOTOS: an index, or images, which are embedded and indexed first.

    Without PHOTOS, the page opens over a sample gallery that featkit draws. The index of your
    images, or of the gallery, is kept in a cache folder: a second run only embeds new and changed
    images.

    Example: featkit demo photos.index --port 7860

    Parameters
    ----------
    photos
        An index folder, or anything that `featkit embed` takes: a folder of images, a .tar, a
        .parquet.
    model
        The model to embed images with: a model file, or a published backbone such as dinov2-small
        (see `featkit export
        --list`), which is downloaded and exported once. The default is featkit-tiny, which ships
        with featkit. An index uses its own model.
    browser
        Open the page in this desktop's browser, if it has one.
    cache
        Where to keep the index of your images. The default is ~/.cache/featkit.
    """
    need_extra(
        "demo", "gradio", "fastapi", "uvicorn", "python_multipart", engines=("faiss", "onnxruntime")
    )
    from featkit.index import Index
    from featkit.serve.running import bind

    bind(host, port).close()  # report a port in use now, not after minutes of embedding
    if photos is not None and is_index(photos):
        _refuse_options_of_images(photos, model, select)
        path = photos
    else:
        path = _index_images(
            photos, model, cache, retry=retry, rehash=rehash, quiet=quiet, select=select
        )
    from featkit_demo.app import run_demo

    with Index.open(path) as index:
        images = counted(len(index), "image")
        run_demo(
            index,
            host,
            port,
            open_browser=browser and _has_desktop(),
            on_ready=lambda address: stdout().print(
                f"Search {images} at {address} (stop with Ctrl-C)"
            ),
        )


def _refuse_options_of_images(
    index: Path, model: str | None, select: SelectionFlags | None
) -> None:
    if model is not None:
        raise InputError(f"{index} is an index and searches with its own model; leave --model out.")
    if select not in (None, SelectionFlags()):
        raise InputError(
            f"{index} is an index, so its images are already chosen; "
            "leave --exclude, --include, --follow-links and --column out."
        )


def _index_images(
    photos: Path | None,
    model: str | None,
    cache: Path | None,
    *,
    retry: bool,
    rehash: bool,
    quiet: bool,
    select: SelectionFlags | None,
) -> Path:
    """Embed and index the images, or the sample gallery for None, and return the index."""
    from featkit.sources.selection import skipped_in_words
    from featkit_demo.prepare import default_cache, prepare_gallery, prepare_index
    from featkit_export.named_model import named_model

    def progress(label: str, total: int) -> AbstractContextManager[Callable[[int, int], None]]:
        return ProgressReporter(label, total=total, quiet=quiet)

    # Resolve the model first: it may be missing and impossible to fetch, and drawing takes a while.
    with step_reporter(quiet=quiet) as on_step:
        file = named_model(model, on_step=on_step)
    if file.is_new and not quiet:
        stdout().print(f"Exported {model} to {file.path}.")
    cache = cache or default_cache()
    images = photos if photos is not None else prepare_gallery(cache, progress=progress)
    prepared = prepare_index(
        images,
        file.path,
        cache,
        progress=progress,
        selection=selection_of(select),
        retry=retry,
        rehash=rehash,
    )
    report = prepared.report
    for line in (*report.notes, skipped_in_words(report.skipped)):
        if line is not None and not quiet:
            stdout().print(line)
    if report.failures:
        print_table("Without an embedding", ("image", "why"), report.failures)
    return prepared.index


def _has_desktop() -> bool:
    """Return whether a browser can be opened on a screen; a server reached by ssh has none."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
