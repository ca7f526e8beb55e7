"""The `featkit` command: the table of its commands, and the one place that turns an error into a
sentence and an exit code."""

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
from featkit.wording import first_line

# Group, name, location and one line of help. A new command is its file and one row here. The help
# is repeated here so that `featkit --help` imports no command.
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
        "Write a published or trained backbone as one proven ONNX file.",
    ),
    ("Make", "embed", "featkit.cli.embed:embed", "Turn a folder of images into unit vectors."),
    (
        "Make",
        "whiten",
        "featkit.cli.whiten:whiten",
        "Fit PCA whitening to embeddings, for shorter vectors.",
    ),
    (
        "Make",
        "index",
        "featkit.cli.index:index",
        "Build a searchable index from embeddings.",
    ),
    (
        "Make",
        "plan",
        "featkit.cli.plan:plan",
        "Say what embedding and searching images will cost here.",
    ),
    (
        "Make",
        "sync",
        "featkit.cli.sync:sync",
        "Keep an index equal to a folder of images.",
    ),
    (
        "Make",
        "compact",
        "featkit.cli.compact:compact",
        "Build what makes the searches of a large index fast.",
    ),
    (
        "Make",
        "calibrate",
        "featkit.cli.calibrate:calibrate",
        "Measure which scores of an index mean a copy or something similar.",
    ),
    (
        "Use",
        "search",
        "featkit.cli.search:search",
        "Find the images of an index most similar to one of yours.",
    ),
    (
        "Use",
        "duplicates",
        "featkit.cli.duplicates:duplicates",
        "List the images of an index that show the same.",
    ),
    ("Use", "list", "featkit.cli.list_items:list_items", "Print the images of an index."),
    ("Use", "remove", "featkit.cli.remove:remove", "Remove images from an index."),
    (
        "Use",
        "export-vectors",
        "featkit.cli.export_vectors:export_vectors",
        "Write the vectors of an index to a Parquet file.",
    ),
    ("Use", "demo", "featkit.cli.demo:demo", "Open the search page over an index."),
    ("Use", "serve", "featkit.cli.serve:serve", "Embed and search over HTTP."),
    ("Use", "keys", "featkit.cli.keys:app", "Create, list and revoke the API keys of a service."),
    (
        "Look",
        "evaluate",
        "featkit.cli.evaluate:app",
        "Measure a model on your own images.",
    ),
    (
        "Look",
        "verify",
        "featkit.cli.verify:verify",
        "Check that another engine or precision gives the same vectors.",
    ),
    (
        "Look",
        "bench",
        "featkit.cli.bench:bench",
        "Compare the engines of this machine in speed and agreement.",
    ),
    (
        "Look",
        "report",
        "featkit.cli.report:report",
        "Write the HTML report of a training run.",
    ),
    (
        "Look",
        "check",
        "featkit.cli.check:check",
        "Check that an index is sound.",
    ),
    (
        "Look",
        "repair",
        "featkit.cli.check:repair",
        "Repair what is damaged in an index.",
    ),
    (
        "Look",
        "doctor",
        "featkit.cli.doctor:doctor",
        "Examine whether this machine can run featkit.",
    ),
    (
        "Look",
        "inspect",
        "featkit.cli.inspect:inspect",
        "Describe a file or folder that featkit wrote.",
    ),
)

# The dynamic loader's messages for a shared library that does not fit into memory.
NO_MEMORY = ("failed to map segment", "cannot allocate memory")

# All commands except training, which ends between two steps, when its state is consistent. A step
# may take longer.
ENDED_WITHIN_SECONDS = frozenset(name for _, name, _, _ in COMMANDS) - {"train"}


def make_app(command: str | None) -> App:
    """Return the command line. Only `command` is imported, for its own --help; the others are
    described by their line in COMMANDS."""
    start = (
        "Start with `featkit demo`, or `featkit demo images/`. For help on a command, add --help:"
        " `featkit embed --help`."
    )
    app = App(
        name="featkit",
        help=(
            "Train self-distilled vision models on your photos, export them, and embed, index and"
            " search images."
        ),
        help_epilogue=None if command else start,
        version=__version__,
        suppress_keyboard_interrupt=False,  # cyclopts would exit with 130 silently
    )
    groups = {name: Group.create_ordered(name) for name in ("Make", "Use", "Look")}
    for position, (group, name, location, line) in enumerate(COMMANDS):
        app.command(
            location,
            name=name,
            help=None if name == command else line,
            group=groups[group],
            sort_key=position,
        )
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: this process's arguments) and return its exit code.

    `--debug` anywhere, or FEATKIT_DEBUG=1, prints the traceback of an error.
    """
    tokens = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in tokens or os.environ.get("FEATKIT_DEBUG") == "1"
    tokens = [token for token in tokens if token != "--debug"]
    command = next((token for token in tokens if not token.startswith("-")), None)
    try:
        result = make_app(command)(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # cyclopts has printed the problem
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FeatkitError, MemoryError, ImportError, OSError) as error:
        if debug:
            traceback.print_exc()
        problem = _as_problem(error)
        print(f"featkit: {problem}", file=sys.stderr)
        return problem.exit_code
    return result if isinstance(result, int) else 0


def _as_problem(error: FeatkitError | MemoryError | ImportError | OSError) -> FeatkitError:
    """Return the error as one of featkit's, with a message that says what to do."""
    if isinstance(error, FeatkitError):
        return error
    if isinstance(error, MemoryError):  # including numpy's and pyarrow's
        return EnvironmentProblem(
            f"out of memory; this process may use {usable_memory() / 1e6:,.0f} MB. Close other"
            " programs, raise the limit, or use fewer --threads."
        )
    if isinstance(error, ImportError):  # a broken package, or no memory for its shared libraries
        advice = "Install featkit's packages again; --debug shows which one failed"
        if any(words in str(error).lower() for words in NO_MEMORY):
            advice = (
                f"This process may use {usable_memory() / 1e6:,.0f} MB of memory; raise the limit"
            )
        return EnvironmentProblem(f"a library cannot be loaded ({first_line(error)}). {advice}.")
    # A folder without permission, a name that is too long: not a bug in featkit.
    return EnvironmentProblem(
        f"{error.filename or 'A file'} cannot be used: {error.strerror or error}; --debug shows"
        " where it was needed."
    )


def entry_point() -> None:
    """Run the console script, in a process of featkit's own."""
    # Pillow warns with its own source lines; commands report such images in their row instead.
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    never_fail_to_print()
    if not ENDED_WITHIN_SECONDS.isdisjoint(sys.argv[1:2]):
        end_on_interrupt()
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
