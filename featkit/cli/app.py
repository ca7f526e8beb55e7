"""The `featkit` command: its table of commands, and the one place where an error becomes a sentence
and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Literal

from cyclopts import App, Group
from cyclopts.exceptions import CycloptsError

from featkit._version import __version__
from featkit.cli.interrupts import MESSAGE, end_on_interrupt
from featkit.cli.terminal import never_fail_to_print
from featkit.errors import EnvironmentProblem, FeatkitError, Interrupted
from featkit.resources import usable_memory
from featkit.wording import first_line, on_one_line

# name, where it lives, one line of help; given here so that `featkit --help` imports none of them.
COMMANDS: tuple[tuple[Literal["Make", "Use", "Look"], str, str, str], ...] = (
    (
        "Make",
        "train",
        "featkit.cli.train:app",
        "Train a self-distilled backbone on your own images.",
    ),
    (
        "Make",
        "export",
        "featkit.cli.export:export",
        "Turn published weights or a training run into one proven ONNX file.",
    ),
    ("Make", "embed", "featkit.cli.embed:embed", "Turn a folder of images into unit vectors."),
    (
        "Make",
        "whiten",
        "featkit.cli.whiten:whiten",
        "Fit PCA-whitening to embeddings, for a model with shorter vectors.",
    ),
    (
        "Make",
        "index",
        "featkit.cli.index:index",
        "Turn embeddings into an index that can be searched.",
    ),
    (
        "Use",
        "search",
        "featkit.cli.search:search",
        "Print the images of an index nearest to one of yours.",
    ),
    ("Use", "demo", "featkit.cli.demo:demo", "Open the search page over an index."),
    ("Use", "serve", "featkit.cli.serve:serve", "Run embedding and search as an HTTP service."),
    (
        "Look",
        "evaluate",
        "featkit.cli.evaluate:app",
        "Measure how good a model is on your own images.",
    ),
    (
        "Look",
        "verify",
        "featkit.cli.verify:verify",
        "Compare another engine or precision with ONNX Runtime on your images.",
    ),
    (
        "Look",
        "bench",
        "featkit.cli.bench:bench",
        "Say how fast each engine runs a model on this machine.",
    ),
    (
        "Look",
        "report",
        "featkit.cli.report:report",
        "Write the page of a training run: scores, curves, images.",
    ),
    ("Look", "inspect", "featkit.cli.inspect:inspect", "Say what a featkit file or folder holds."),
)

# What the system's loader says when a shared library does not fit into memory.
NO_ROOM = ("failed to map segment", "cannot allocate memory")

# All commands but training, which ends between two steps, where its state is whole, however long a
# step takes.
ENDED_WITHIN_SECONDS = frozenset(name for _, name, _, _ in COMMANDS) - {"train"}


def make_app(command: str | None) -> App:
    """The command line. `command`, if any, is described by its own docstring, for its --help; the
    others by one line each."""
    start = (
        "Start with `featkit demo`, or `featkit demo images/`. Each command explains itself:"
        " `featkit embed --help`."
    )
    app = App(
        name="featkit",
        help=(
            "Self-distilled vision models, from photographs to search: train, export, embed, index,"
            " search."
        ),
        help_epilogue=None if command else start,
        version=__version__,
        suppress_keyboard_interrupt=False,  # cyclopts would end with 130 and without a word
    )
    groups = {name: Group.create_ordered(name) for name in ("Make", "Use", "Look")}
    for place, (group, name, where, line) in enumerate(COMMANDS):
        app.command(
            where,
            name=name,
            help=None if name == command else line,
            group=groups[group],
            sort_key=place,
        )
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code.

    `--debug` anywhere, or FEATKIT_DEBUG=1, keeps the traceback of an error.
    """
    tokens = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in tokens or os.environ.get("FEATKIT_DEBUG") == "1"
    tokens = [token for token in tokens if token != "--debug"]
    command = next((token for token in tokens if not token.startswith("-")), None)
    try:
        result = make_app(command)(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # cyclopts has printed what is wrong
    except FeatkitError as error:
        if debug:
            traceback.print_exc()
        print(f"featkit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:  # pyarrow's and numpy's too
        if debug:
            traceback.print_exc()
        limit = usable_memory() / 1e6
        print(
            f"featkit: the memory ran out; this process may use {limit:,.0f} MB. Close other"
            " programs, raise the limit, or use fewer --threads.",
            file=sys.stderr,
        )
        return EnvironmentProblem.exit_code
    # a package that is broken or half there, or no room for its shared libraries
    except ImportError as error:
        if debug:
            traceback.print_exc()
        advice = "Install featkit's packages again; --debug shows which of them it was"
        if any(words in str(error).lower() for words in NO_ROOM):
            advice = (
                f"This process may use {usable_memory() / 1e6:,.0f} MB of memory; raise the limit"
            )
        print(
            f"featkit: a library cannot be loaded ({on_one_line(first_line(error))}). {advice}.",
            file=sys.stderr,
        )
        return EnvironmentProblem.exit_code
    # a folder that may not be entered, a name that is too long: no mistake in featkit
    except OSError as error:
        if debug:
            traceback.print_exc()
        what = error.filename or "A file"
        sentence = (
            f"{what} cannot be used: {error.strerror or error}; --debug shows where it was needed."
        )
        print(f"featkit: {on_one_line(sentence)}", file=sys.stderr)
        return EnvironmentProblem.exit_code
    return result if isinstance(result, int) else 0


def entry_point() -> None:
    """What the console script calls, in a process that is featkit's own."""
    # what Pillow remarks with its own source lines, a command says in an image's row
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    never_fail_to_print()
    if not ENDED_WITHIN_SECONDS.isdisjoint(sys.argv[1:2]):
        end_on_interrupt()
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
