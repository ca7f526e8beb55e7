"""The `featkit` command itself: light to start, one message for every mistake, an example for every
command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

import featkit
from featkit.cli.app import COMMANDS, main
from featkit.errors import EnvironmentProblem, FeatkitError, InputError, Interrupted, StrictFailure
from tests.commands import REPOSITORY, is_one_sentence, run_featkit

HEAVY = (
    "PIL cv2 faiss fastapi gradio httpx matplotlib numpy onnx onnxruntime onnxscript openvino"
    " pandas pyarrow safetensors scipy sqlite3 starlette timm torch torchvision transformers"
    " uvicorn"
).split()
# Bare Python has about 30 modules, `import featkit` 30 more, and the command line with its help 250
# on top.
MOST_OF_IMPORT, MOST_OF_HELP = 60, 400
SUBCOMMANDS = [
    *(["train", method] for method in ("dino", "ibot", "dinov2", "dinov3", "distill", "adapt")),
    ["export"],
    ["embed"],
    ["whiten"],
    ["index"],
    ["sync"],
    ["compact"],
    ["calibrate"],
    ["plan"],
    ["search"],
    ["duplicates"],
    ["list"],
    ["remove"],
    ["export-vectors"],
    ["demo"],
    ["serve"],
    *(["keys", action] for action in ("create", "list", "revoke")),
    *(["evaluate", yardstick] for yardstick in ("copies", "knn", "linear", "retrieval")),
    ["verify"],
    ["bench"],
    ["report"],
    ["check"],
    ["repair"],
    ["doctor"],
    ["inspect"],
]


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh Python has loaded when it has run `code`."""
    program = f"{code}\nimport sys\nprint('modules', *sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import featkit", MOST_OF_IMPORT),
        ("from featkit.cli.app import main; main(['--help'])", MOST_OF_HELP),
        ("from featkit.cli.app import main; main(['--version'])", MOST_OF_HELP),
    ],
)
def test_starting_loads_nothing_heavy(code: str, most: int) -> None:
    loaded = modules_after(code) - modules_after("pass")
    assert "featkit" in loaded
    assert {name.split(".")[0] for name in loaded}.isdisjoint(HEAVY)
    assert len(loaded) <= most


def test_the_help_of_a_command_loads_no_engine() -> None:
    code = (
        "from featkit.cli.app import main\nfor name in ('embed', 'index', 'search', 'inspect'):"
        " main([name, '--help'])"
    )
    assert {name.split(".")[0] for name in modules_after(code)}.isdisjoint(
        {"faiss", "gradio", "onnxruntime", "openvino", "pyarrow", "torch"}
    )


def test_the_public_names_are_there_when_they_are_asked_for() -> None:
    assert sorted(featkit.__all__) == [
        *("AsyncClient", "Client", "Embedder", "FeatkitError", "Index", "__version__", "sync"),
    ]
    assert featkit.FeatkitError is FeatkitError
    assert all(getattr(featkit, name) is not None for name in featkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        featkit.Embeder  # noqa: B018  # quoted


def test_version_is_that_of_the_package() -> None:
    said = run_featkit("--version")
    assert (said.code, said.out.strip(), said.error) == (0, featkit.__version__, "")


def test_help_lists_every_command_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    said = run_featkit("--help")
    assert (said.code, said.error) == (0, "")
    for _, name, _, line in COMMANDS:
        assert re.search(rf"\b{name} +{re.escape(line)}", said.out)
    assert run_featkit() == said


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=" ".join)
def test_each_command_explains_itself_with_an_example_of_itself(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    said = run_featkit(*command, "--help")
    assert (said.code, said.error) == (0, "")
    assert said.out.startswith(f"Usage: featkit {' '.join(command)} ")
    assert re.search(rf"^Example: featkit {' '.join(command)} \S", said.out, re.MULTILINE)


def test_every_command_is_among_those_whose_help_is_read() -> None:
    assert {name for _, name, _, _ in COMMANDS} == {command[0] for command in SUBCOMMANDS}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embedd"], 'Unknown command "embedd". Did you mean "embed"?'),  # quoted
        (
            ["embed", "images", "--out", "emb", "--shard-sice", "3"],
            "Unknown option: --shard-sice. Did you mean --shard-size?",
        ),
        (
            ["embed", "images", "--out", "emb", "--threads", "many"],
            'Invalid value for --threads: unable to convert "many" into',
        ),
        (["embed", "images"], "--out"),
        (["inspect"], "PATH"),
    ],
)
def test_a_mistyped_command_line_is_one_message_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    said = run_featkit(*arguments)
    assert (said.code, said.out) == (2, "")
    assert words in said.error
    assert (
        len(
            [
                line
                for line in said.error.splitlines()
                if re.search(r"\w", line.replace("Error", ""))
            ]
        )
        == 1
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FeatkitError, 1),
        (InputError, 2),
        (EnvironmentProblem, 3),
        (StrictFailure, 4),
        (Interrupted, 130),
    ],
)
def test_error_ends_the_command_with_its_sentence_and_code(
    error: type[FeatkitError], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_inspect(error("It is so; do this."), monkeypatch)
    assert run_featkit("inspect", "x") == (code, "", "featkit: It is so; do this.\n")


def test_unexpected_ctrl_c_ends_with_130_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raise_in_inspect(KeyboardInterrupt(), monkeypatch)
    said = run_featkit("inspect", "x")
    assert said.code == 130
    assert is_one_sentence(said)


def test_what_the_system_refuses_is_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    said = run_featkit("inspect", tmp_path / ("a" * 300))
    assert said.code == 3
    assert is_one_sentence(said)
    assert f"{tmp_path}/aaa" in said.error
    assert "cannot be used: File name too long" in said.error


def test_a_mistake_in_featkit_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_inspect(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError, match="ours"):
        run_featkit("inspect", "x")


@pytest.mark.parametrize("missing", ["missing", "a" * 300], ids=["input", "system"])
def test_debug_shows_the_traceback_and_the_sentence(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_featkit("inspect", tmp_path / missing)
    monkeypatch.setenv("FEATKIT_DEBUG", "1")
    asked = [run_featkit("inspect", tmp_path / missing)]
    monkeypatch.delenv("FEATKIT_DEBUG")
    asked += [
        run_featkit("--debug", "inspect", tmp_path / missing),
        run_featkit("inspect", tmp_path / missing, "--debug"),
    ]
    assert "Traceback" not in plain.error
    for said in asked:
        assert said.code == plain.code
        assert said.error.startswith("Traceback (most recent call last):\n")
        assert "in look\n" in said.error
        assert said.error.endswith(plain.error)


def raise_in_inspect(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `featkit inspect` end with this error."""

    def look(_path: Path) -> None:
        raise error

    monkeypatch.setattr("featkit.cli.inspect.look", look)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("libarrow.so.2600: failed to map segment from shared object", "raise the limit."),
        (
            "libgomp.so.1: cannot open shared object file: No such file",
            "Install featkit's packages again",
        ),
    ],
)
def test_a_library_that_cannot_be_loaded_is_one_sentence(
    reason: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ImportError(reason)

    monkeypatch.setattr("featkit.cli.app.make_app", fail)
    assert main(["inspect", "x"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"featkit: a library cannot be loaded ({reason}). ")
    assert advice in said
    assert said.count("\n") == 1
