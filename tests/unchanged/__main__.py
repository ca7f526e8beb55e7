"""Show that a refactoring changes nothing.

Records what featkit computes and compares two recordings: metrics and weights of a short run of
each training method, fingerprints and vectors of exported files of each weight family, and the
bytes of an embeddings folder. Everything goes through featkit's command line, with inputs that this
version makes, so that older and newer commits can be compared. A commit takes about three minutes
on one processor: training 20 s, export 120 s, embedding 5 s.

    python -m tests.unchanged record before.json              # the tree this file stands in
    ... change the code ...
    python -m tests.unchanged record after.json --only train
    python -m tests.unchanged compare before.json after.json  # exit code 1 if anything differs
    python -m tests.unchanged between main --only train       # record main and this tree now

Results must not change. Metadata (setting names, headers, manifests, error messages) may change on
purpose and is listed by itself. Times, rates and memory are not recorded. Recordings made on
different processors or library versions differ in rounding; the comparison says so first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.unchanged.comparing import report
from tests.unchanged.recording import PARTS, Recorder

HERE = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "compare":
        return _compare(*(json.loads(Path(path).read_text()) for path in options.files))
    with tempfile.TemporaryDirectory(prefix="unchanged-") as work:
        if options.command == "record":
            recording = _record(options.commit, Path(work), options.only)
            options.file.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")
            failed = [section for section in recording["results"] if section.endswith("/failure")]
            return int(bool(failed))
        commits = [*options.commits, None][:2]
        return _compare(*(_record(commit, Path(work), options.only) for commit in commits))


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.unchanged", None, __doc__, formatter_class=shape
    )
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="record one commit into a JSON file")
    record.add_argument("file", type=Path)
    record.add_argument("--commit", help="a commit; by default the tree this file stands in")
    compare = commands.add_parser("compare", help="compare two JSON files")
    compare.add_argument("files", nargs=2)
    between = commands.add_parser("between", help="record two commits and compare them")
    between.add_argument(
        "commits", nargs="+", help="one or two; the second is by default this tree"
    )
    for command in (record, between):
        command.add_argument(
            "--only", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}"
        )
    return parser


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return parts


def _record(commit: str | None, work: Path, parts: Sequence[str]) -> dict[str, Any]:
    with _checkout(commit) as tree:
        return Recorder(tree, work, _describe(tree)).record(parts)


@contextlib.contextmanager
def _checkout(commit: str | None) -> Iterator[Path]:
    """Give a temporary worktree of a commit, or the tree this file stands in."""
    if commit is None:
        yield HERE
        return
    with tempfile.TemporaryDirectory(prefix="unchanged-") as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree.resolve()
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _describe(tree: Path) -> str:
    return _git("describe", "--always", "--dirty", "--abbrev=7", folder=tree)


def _git(*arguments: str, folder: Path = HERE) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def _compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    text, same = report(before, after)
    print(text, end="")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
