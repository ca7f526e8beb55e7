"""The `featkit` command: its table of commands, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Literal

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from featkit._version import __version__
from featkit.errors import FeatkitError, Interrupted

# name, where it lives, one line of help; given here so that `featkit --help` imports none of them.
COMMANDS: tuple[tuple[Literal["Make", "Use", "Look"], str, str, str], ...] = (
    ("Make", "train", "featkit.cli.train:app", "Train a self-distilled backbone on your own pictures."),
    ("Make", "export", "featkit.cli.export:export", "Turn a training run into one ONNX file, proven equal to it."),
    ("Make", "embed", "featkit.cli.embed:embed", "Turn a folder of pictures into unit vectors."),
    ("Make", "index", "featkit.cli.index:index", "Turn embeddings into an index that can be searched."),
    ("Use", "search", "featkit.cli.search:search", "Print the pictures of an index nearest to one of yours."),
    ("Use", "demo", "featkit.cli.demo:demo", "Open the search page over an index."),
    ("Use", "serve", "featkit.cli.serve:serve", "Run embedding and search as an HTTP service."),
    ("Look", "evaluate", "featkit.cli.evaluate:app", "Measure how good a model is on your own pictures."),
    ("Look", "inspect", "featkit.cli.inspect:inspect", "Say what a featkit file or folder holds."),
)

app = App(
    name="featkit",
    help="Self-distilled vision models, from photographs to search: train, export, embed, index, search.",
    help_epilogue="Start with: featkit embed pictures/ --out emb/ && featkit index emb/ --out photos.index",
    version=__version__,
)
for _group, _name, _where, _help in COMMANDS:
    app.command(_where, name=_name, help=_help, group=_group)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code.

    `--debug` anywhere, or FEATKIT_DEBUG=1, keeps the traceback of an error.
    """
    tokens = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in tokens or os.environ.get("FEATKIT_DEBUG") == "1"
    tokens = [token for token in tokens if token != "--debug"]
    try:
        result = app(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2  # cyclopts has printed what is wrong
    except FeatkitError as error:
        if debug:
            traceback.print_exc()
        print(f"featkit: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("featkit: stopped by Ctrl-C; what was committed is kept.", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


def entry_point() -> None:
    """What the console script calls."""
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
