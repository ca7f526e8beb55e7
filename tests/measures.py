"""Print how long, how deep and how well described the code is, or draw sentences to be judged.

Examples:
    python -m tests.measures                           # a column for each package
    python -m tests.measures --root ../older-checkout  # the same for another checkout
    python -m tests.measures --list privates           # the lines that one measure counts
    python -m tests.measures --sentences 100 --seed 7 --room featkit/index
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from radon.complexity import cc_visit
from radon.visitors import Class
from radon.visitors import Function as RadonFunction

from tests.prose import docstring_nodes, passages, read_python, sentences

REPOSITORY = Path(__file__).parents[1]
# A package's folder, and the folders under tests/ that may mirror it.
PACKAGES = {
    "featkit": ("featkit", ("tests/featkit",)),
    "featkit_train": ("train/featkit_train", ("tests/train",)),
    "featkit_export": ("export/featkit_export", ("tests/export",)),
    "featkit_demo": ("demo/featkit_demo", ("tests/demo",)),
}
MAX_COLUMNS = 100
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_COMPLEXITY = 10
MAX_TEST_NAME = 60
# Methods of named tuples, and of os and sys, that are public in spite of their names.
NOT_PRIVATE = {"_replace", "_asdict", "_fields", "_make", "_exit", "_getframe"}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


class SourceFile:
    """A Python file; each view of it is computed when first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = read_python(path)
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @cached_property
    def comment_lines(self) -> set[int]:
        return {token.start[0] for token in self.tokens if token.type == tokenize.COMMENT}

    @cached_property
    def docstring_lines(self) -> set[int]:
        return {line for node in docstring_nodes(self.tree) for line in _span(node)}

    @cached_property
    def code_lines(self) -> set[int]:
        spans = (
            range(token.start[0], token.end[0] + 1)
            for token in self.tokens
            if token.type not in NO_CODE
        )
        return {line for span in spans for line in span} - self.docstring_lines

    @cached_property
    def blocks(self) -> list[RadonFunction]:
        """Each function and method with its cyclomatic complexity."""
        return [block for block in cc_visit(self.text) if not isinstance(block, Class)]

    def num_code_lines(self, function: Function) -> int:
        """Count the lines of a function that hold code, its signature included."""
        return len(self.code_lines.intersection(_span(function)))


@dataclass(frozen=True)
class Package:
    """The source files of one package, the tests that mirror it, and what has no test."""

    files: list[SourceFile]
    tests: list[SourceFile]
    unmirrored: list[str]

    @property
    def functions(self) -> list[Function]:
        return [function for file in self.files for function in file.functions]

    @property
    def num_lines(self) -> int:
        return sum(len(file.lines) for file in self.files)

    @property
    def test_names(self) -> list[str]:
        functions = (function for file in self.tests for function in file.functions)
        return [function.name for function in functions if function.name.startswith("test_")]


def read_package(root: Path, folder: str, mirrors: Sequence[str]) -> Package:
    """Read a package of the checkout `root` with its tests."""
    paths = sorted((root / folder).rglob("*.py"))
    test_paths = [path for mirror in mirrors for path in sorted((root / mirror).rglob("*.py"))]
    unmirrored = [
        str(path.relative_to(root))
        for path in paths
        if not path.name.startswith("__")
        and not any(
            (
                root / mirror / path.relative_to(root / folder).with_name(f"test_{path.name}")
            ).exists()
            for mirror in mirrors
        )
    ]
    return Package(
        [SourceFile(path) for path in paths], [SourceFile(path) for path in test_paths], unmirrored
    )


def read_all(root: Path) -> dict[str, Package]:
    """Read each package of a checkout, and "all" of them with every test."""
    packages = {name: read_package(root, *where) for name, where in PACKAGES.items()}
    packages["all"] = Package(
        [file for package in packages.values() for file in package.files],
        [SourceFile(path) for path in sorted((root / "tests").rglob("*.py"))],
        [name for package in packages.values() for name in package.unmirrored],
    )
    return packages


def parameters(function: Function) -> list[ast.arg]:
    """Return every parameter of a function but self and cls."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
    starred = [arg for arg in (spec.vararg, spec.kwarg) if arg]
    return [arg for arg in [*named, *starred] if arg.arg not in ("self", "cls")]


def num_positional(function: Function) -> int:
    """Count the parameters of a function that a caller may pass by position."""
    spec = function.args
    return sum(arg.arg not in ("self", "cls") for arg in [*spec.posonlyargs, *spec.args])


def is_typed(function: Function) -> bool:
    """Return whether every parameter and the result of a function are annotated."""
    return function.returns is not None and all(arg.annotation for arg in parameters(function))


def public_nodes(tree: ast.Module) -> Iterator[Documented]:
    """Yield a module, its public classes and functions, and the public methods of those."""
    yield tree
    bodies = [tree.body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    bodies.append(node.body)


def private_reaches(tree: ast.Module) -> list[int]:
    """Return the lines of a test that use a name which another module or class keeps private."""
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.ClassDef | Function)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_of_self(node)}
    return sorted(
        {line for node in nodes for line, name in _private_names(node) if name not in own}
    )


def percentiles(values: Iterable[int], *percents: int) -> str:
    """Show percentiles of the values, as in "7 / 23 / 110"."""
    ordered = sorted(values)
    last = len(ordered) - 1
    shown = [str(ordered[round(last * percent / 100)]) for percent in percents] if ordered else "–"
    return " / ".join(shown)


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"


def _over(values: Iterable[int], limit: int) -> str:
    return str(sum(value > limit for value in values))


def _documented(package: Package) -> str:
    nodes = [node for file in package.files for node in public_nodes(file.tree)]
    return _share(sum(ast.get_docstring(node) is not None for node in nodes), len(nodes))


def _long_lines(package: Package) -> str:
    num_long = sum(len(line) > MAX_COLUMNS for file in package.files for line in file.lines)
    return f"{num_long} = {_share(num_long, package.num_lines)}"


ROWS: dict[str, Callable[[Package], str]] = {
    "functions": lambda p: f"{len(p.functions)}",
    "  lines of code, p50 / p90 / max": lambda p: percentiles(
        (file.num_code_lines(function) for file in p.files for function in file.functions),
        *(50, 90, 100),
    ),
    "  lines with docstring, p50 / p90 / max": lambda p: percentiles(
        (len(_span(function)) for function in p.functions), 50, 90, 100
    ),
    "  parameters, p90 / max": lambda p: percentiles(
        (len(parameters(function)) for function in p.functions), 90, 100
    ),
    "  with more than 5 / 8 parameters": lambda p: " / ".join(
        _over((len(parameters(function)) for function in p.functions), limit) for limit in (5, 8)
    ),
    "  with more than 4 by position": lambda p: _over(map(num_positional, p.functions), 4),
    "  typed": lambda p: _share(sum(map(is_typed, p.functions)), len(p.functions)),
    "  complexity, p50 / p90 / p99 / max": lambda p: percentiles(
        (block.complexity for file in p.files for block in file.blocks), 50, 90, 99, 100
    ),
    f"  of complexity above {MAX_COMPLEXITY}": lambda p: _over(
        (block.complexity for file in p.files for block in file.blocks), MAX_COMPLEXITY
    ),
    "files": lambda p: f"{len(p.files)}",
    "  lines, p50 / p90 / max": lambda p: percentiles(
        (len(file.lines) for file in p.files), 50, 90, 100
    ),
    f"  above {MAX_FILE_LINES} lines": lambda p: _over(
        (len(file.lines) for file in p.files), MAX_FILE_LINES
    ),
    "lines": lambda p: f"{p.num_lines}",
    "  with a comment": lambda p: _share(
        sum(len(file.comment_lines) for file in p.files), p.num_lines
    ),
    "  of docstrings": lambda p: _share(
        sum(len(file.docstring_lines) for file in p.files), p.num_lines
    ),
    f"  over {MAX_COLUMNS} columns": _long_lines,
    "public names with a docstring": _documented,
    "test functions": lambda p: f"{len(p.test_names)}",
    "  length of name, median / max": lambda p: (
        f"{median(map(len, p.test_names)):.0f} / {max(map(len, p.test_names))}"
    ),
    f"  with a name over {MAX_TEST_NAME}": lambda p: _over(map(len, p.test_names), MAX_TEST_NAME),
    "  reaches into privates": lambda p: str(
        sum(len(private_reaches(file.tree)) for file in p.tests)
    ),
    "modules without a test at their path": lambda p: f"{len(p.unmirrored)} of {_num_modules(p)}",
    "lines of tests : of source": lambda p: (
        f"{sum(len(file.lines) for file in p.tests) / p.num_lines:.2f}"
    ),
}


LISTS: dict[str, Callable[[Package], list[str]]] = {
    "unmirrored": lambda p: p.unmirrored,
    "privates": lambda p: [
        f"{file.path}:{line}: {file.lines[line - 1].strip()}"
        for file in p.tests
        for line in private_reaches(file.tree)
    ],
    "long functions": lambda p: sorted(
        f"{file.path}:{function.lineno}: {file.num_code_lines(function)} lines, {function.name}"
        for file in p.files
        for function in file.functions
        if file.num_code_lines(function) > MAX_FUNCTION_LINES
    ),
    "complex functions": lambda p: sorted(
        f"{file.path}:{block.lineno}: complexity {block.complexity}, {block.name}"
        for file in p.files
        for block in file.blocks
        if block.complexity > MAX_COMPLEXITY
    ),
}


def print_table(packages: dict[str, Package]) -> None:
    """Print every measure of every package as a Markdown table."""
    table = [["", *packages], ["---"] * (len(packages) + 1)]
    table += [[name, *(measure(p) for p in packages.values())] for name, measure in ROWS.items()]
    widths = [max(len(row[column]) for row in table) for column in range(len(packages) + 1)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("|", " | ".join(cells), "|")


def draw_sentences(folders: Iterable[Path], *, count: int, seed: int) -> list[str]:
    """Draw sentences of docstrings, comments and strings, each with its file and line."""
    every = [
        f"{path}:{line}: [{passage.kind}] {sentence}"
        for folder in folders
        for path in sorted(folder.rglob("*.py") if folder.is_dir() else [folder])
        for passage in passages(read_python(path))
        for line, sentence in sentences(passage)
    ]
    return random.Random(seed).sample(every, min(count, len(every)))


def main() -> None:
    """Print the table or the sentences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="the checkout to measure")
    parser.add_argument("--list", choices=LISTS, help="print what one measure counts")
    parser.add_argument("--sentences", type=int, metavar="N", help="draw N sentences")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", type=Path, action="append", help="a folder to draw from")
    chosen = parser.parse_args()
    if chosen.sentences:
        rooms = chosen.room or [chosen.root / folder for folder, _ in PACKAGES.values()]
        print(*draw_sentences(rooms, count=chosen.sentences, seed=chosen.seed), sep="\n")
    elif chosen.list:
        print(*LISTS[chosen.list](read_all(chosen.root)["all"]), sep="\n")
    else:
        print_table(read_all(chosen.root))


def _num_modules(package: Package) -> int:
    return sum(not file.path.name.startswith("__") for file in package.files)


def _span(node: ast.expr | Function) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _is_private(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.startswith("_")
        and not name.startswith("__")
        and name.isidentifier()
        and name not in NOT_PRIVATE | {"_"}
    )


def _is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _private_names(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the private names that a node reads, imports or patches, each with its line."""
    names: list[object] = []
    if isinstance(node, ast.Attribute) and not _is_of_self(node):
        names = [node.attr]
    elif isinstance(node, ast.ImportFrom):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if called in ("setattr", "delattr", "getattr"):
            names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
    if isinstance(node, ast.expr | ast.stmt):
        yield from ((node.lineno, str(name)) for name in names if _is_private(name))


if __name__ == "__main__":
    main()
