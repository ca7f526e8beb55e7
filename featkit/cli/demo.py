"""`featkit demo`: the search page."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.extras import need_extra
from featkit.cli.selecting import SelectionFlags, selection_of
from featkit.errors import InputError
from featkit.folders import is_index
from featkit.wording import counted


def demo(
    photos: Path | None = None,
    /,
    *,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = True,
    cache: Path | None = None,
    retry: bool = False,
    rehash: bool = False,
    quiet: bool = False,
    select: SelectionFlags | None = None,
) -> None:
    """Open the search page over PHOTOS: an index, or images, which are embedded and indexed
    first.

    Without PHOTOS it opens over a sample gallery that it draws. Images and sample gallery are
    kept in a cache folder; a second run embeds only what is new or changed.

    Example: featkit demo photos.index --port 7860

    Parameters
    ----------
    photos
        An index folder, or whatever `featkit embed` takes: a folder of images, a .tar, a .parquet.
    model
        The model for images: a model file, or a published backbone such as dinov2-small (featkit export --list), which is
        fetched and turned into one. By default featkit-tiny, which ships with featkit. An index brings its own.
    host
        Address to listen on. 127.0.0.1 is this machine only; 0.0.0.0 is every network it is in.
    port
        Port to listen on; 0 takes any free one.
    browser
        Open the page in this desktop's browser, if it has one.
    cache
        Where indexes over images are kept; by default ~/.cache/featkit.
    retry
        Try all failed images again, though their files are the same.
    rehash
        Read all files and compare their content, to find images that were exchanged without another size or time.
    quiet
        Show no progress.
    """
    need_extra(
        "demo", "gradio", "fastapi", "uvicorn", "python_multipart", engines=("faiss", "onnxruntime")
    )
    from featkit.cli.named_model import model_file
    from featkit.index import Index
    from featkit.serve.running import bind

    bind(host, port).close()  # a port that is taken is said now, not after minutes of embedding

    def progress(label: str, total: int) -> AbstractContextManager[Callable[[int, int], None]]:
        return ProgressReporter(label, total=total, quiet=quiet)

    if photos is not None and is_index(photos):
        if model is not None:
            raise InputError(
                f"{photos} is an index and searches with its own model; leave --model out."
            )
        if select not in (None, SelectionFlags()):
            raise InputError(
                f"{photos} is an index, whose images are chosen already; "
                "leave --exclude, --include, --follow-links and --column out."
            )
        path = photos
    else:
        from featkit.sources.selection import skipped_in_words
        from featkit_demo.prepare import default_cache, prepare_gallery, prepare_index

        place = cache or default_cache()
        # before the gallery is drawn: it may not be there and not to be had
        file = model_file(model, quiet=quiet)
        images = photos if photos is not None else prepare_gallery(place, progress=progress)
        prepared = prepare_index(
            images,
            file,
            place,
            progress=progress,
            selection=selection_of(select),
            retry=retry,
            rehash=rehash,
        )
        for line in (*prepared.notes, skipped_in_words(prepared.skipped)):
            if line is not None and not quiet:
                stdout().print(line)
        if prepared.failures:
            print_table("Without an embedding", ("image", "why"), prepared.failures)
        path = prepared.index
    from featkit_demo.app import run_demo

    with Index.open(path) as index:
        what = counted(len(index), "image")
        run_demo(
            index,
            host,
            port,
            open_browser=browser and _has_desktop(),
            on_ready=lambda address: stdout().print(
                f"Search {what} at {address} (stop with Ctrl-C)"
            ),
        )


def _has_desktop() -> bool:
    """Whether there is a screen to open a browser on; a server reached by ssh has none."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
