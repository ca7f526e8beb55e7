"""Bad files, folders, disks and other processes: one sentence, the right exit code, nothing
half-written."""

from __future__ import annotations

import re
import resource
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.commands import Said, digests, end, is_one_sentence, run_featkit, start_featkit
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.odd_images import READABLE, UNREADABLE, write_odd_images
from tests.processes import run_python, start_python

FULL = Path("/dev/full")
RUN = "import sys; from featkit.cli.app import main; sys.exit(main())"
HOLD = """
import sys
from featkit.index import Index
with Index.open(sys.argv[1], writable=True):
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all is well: `images`, `m.onnx`, and of them `emb` in three shards and
    `photos.index`."""
    root = tmp_path_factory.mktemp("good")
    draw_folder(root / "images", 12)
    make_model_file(root / "m.onnx")
    assert embed(root, root / "emb").code == 0
    assert run_featkit("index", root / "emb", "--out", root / "photos.index").code == 0
    return root


def embedding(good: Path, out: Path) -> list[object]:
    """The command that makes `emb`."""
    return [
        "embed",
        good / "images",
        "--model",
        good / "m.onnx",
        "--out",
        out,
        "--shard-size",
        4,
        "--threads",
        1,
    ]


def embed(good: Path, out: Path) -> Said:
    """Run it."""
    return run_featkit(*embedding(good, out))


def everything(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Names of all files and folders below, and what is in the files."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")), digests(folder)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (
            "embed missing --out new",
            2,
            "missing does not exist; name a folder of images, a .tar, a .parquet, or a .txt list",
        ),
        ("embed empty --out new", 2, "empty holds no images: it is empty."),
        ("embed papers --out new", 2, "papers holds no images. Skipped: 1 "),
        ("embed nothing.txt --out new", 2, "nothing.txt lists no images; write one path per line."),
        ("embed text.tar --out new", 2, "text.tar is plain text; name a tar archive."),
        ("embed text.parquet --out new", 2, "text.parquet is plain text; name a Parquet file."),
        (
            "embed images --out new --model missing.onnx",
            2,
            "missing.onnx does not exist; name a model file",
        ),
        (
            "embed images --out new --model nothing.txt",
            2,
            "nothing.txt is not a featkit model file",
        ),
        ("embed images --out new --model text.tar", 2, "text.tar is not a featkit model file"),
        ("embed images --out new --model empty", 2, "empty is not a featkit model file"),
        ("embed images --out text.tar", 2, "text.tar is a file; name a folder with --out."),
        (
            "embed images --out text.tar/emb",
            2,
            "text.tar is a file; name another folder with --out.",
        ),
        (
            "embed images --out papers",
            2,
            "papers is not an embeddings folder and holds thesis.doc; choose a new or an empty"
            " --out.",
        ),
        (
            "embed images --out new --shard-size 0",
            2,
            "The shard size is 0; use 1 or more.",
        ),
        ("embed images --out new --threads 0", 2, "The number of threads is 0; use 1 or more."),
        ("index missing --out new", 2, "missing is not an embeddings folder"),
        ("index images --out new", 2, "images is not an embeddings folder"),
        ("index text.tar --out new", 2, "text.tar is not an embeddings folder"),
        ("index emb --out text.tar", 2, "text.tar is not a featkit index"),
        ("index emb --out papers", 2, "papers is not a featkit index"),
        ("index emb --out emb", 2, "emb is not a featkit index"),
        (
            "index emb --out text.tar/index",
            3,
            "text.tar/index cannot be written: Not a directory; choose another path.",
        ),
    ],
)
def test_impossible_command_is_one_sentence_and_changes_nothing(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "emb", "m.onnx"):
        (tmp_path / name).symlink_to(good / name)
    for name in ("empty", "papers"):
        (tmp_path / name).mkdir()
    (tmp_path / "papers" / "thesis.doc").write_text("Chapter 1")
    (tmp_path / "nothing.txt").touch()
    for name in ("text.tar", "text.parquet"):
        (tmp_path / name).write_text("To whom it may concern")
    before, before_of_emb = everything(tmp_path), everything(good / "emb")
    arguments = command.split()
    if arguments[0] == "embed" and "--model" not in arguments:
        arguments += ["--model", "m.onnx"]
    said = run_featkit(*arguments)
    assert is_one_sentence(said), said
    assert (said.code, words in said.error) == (code, True), said.error
    assert everything(tmp_path) == before
    assert everything(good / "emb") == before_of_emb


def test_images_of_every_kind_go_through_the_whole_line(good: Path, tmp_path: Path) -> None:
    write_odd_images(tmp_path / "odd")
    out, index = tmp_path / "emb", tmp_path / "i"
    assert (
        run_featkit(
            "embed", tmp_path / "odd", "--model", good / "m.onnx", "--out", out, "--shard-size", 3
        ).code
        == 0
    )
    said = run_featkit("index", out, "--out", index)
    assert said.out.startswith(
        f"{len(READABLE)} images added, {len(UNREADABLE)} without an embedding; {index} holds "
    )
    for name in READABLE:
        hits = run_featkit("search", index, tmp_path / "odd" / name, "-k", 1)
        assert hits.out.splitlines()[2].split()[1:3] == ["1.0000", name]
    for name, why in UNREADABLE.items():
        hits = run_featkit("search", index, tmp_path / "odd" / name)
        assert hits.code == 2
        assert is_one_sentence(hits)
        assert why in hits.error


def test_missing_image_is_a_row_and_the_others_are_embedded(good: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{good}/images/000.jpg\ngone.jpg\n{good}/images/001.jpg\n")
    said = run_featkit(
        "embed", tmp_path / "list.txt", "--model", good / "m.onnx", "--out", tmp_path / "emb"
    )
    assert (said.code, said.error) == (0, "")
    assert "2 of 3 images embedded" in said.out
    rows = pq.read_table(tmp_path / "emb" / "shards").to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "gone.jpg does not exist." in rows[1]["error"]
    np.testing.assert_array_equal(
        rows[0]["embedding"], pq.read_table(good / "emb" / "shards").to_pylist()[0]["embedding"]
    )


@pytest.mark.skipif(
    not FULL.exists(), reason="the system has no /dev/full, which fails like a full disk"
)
@pytest.mark.parametrize(
    "target", ["plan.json", "model.onnx", "shards/00000.parquet", "shards/00002.parquet"]
)
def test_full_disk_is_reported_and_embed_resumes_with_space(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """The file that is written first under a temporary name lies on a device where every write
    finds no space."""
    out = tmp_path / "emb"
    temporary = out / f"{target}.partial-full"

    def token_hex(_num_bytes: int) -> str:
        if temporary.parent.is_dir() and not temporary.is_symlink():
            temporary.symlink_to(FULL)
        return "full"

    with monkeypatch.context() as patch:
        patch.setattr("featkit.atomic.secrets.token_hex", token_hex)
        said = embed(good, out)
    assert said == (
        3,
        "",
        f"featkit: No space left to write {out}/{target}; free some space, or choose another"
        " path.\n",
    )
    assert not temporary.is_symlink()
    assert digests(out).items() < digests(good / "emb").items()
    assert embed(good, out).code == 0
    assert digests(out) == digests(good / "emb")


def limited(command: list[object], num_bytes: int) -> Said:
    """Run a command in a process that may not write files of more bytes."""
    return end(
        start_featkit(
            *command,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes)),
        )
    )


@pytest.mark.parametrize("target", ["plan.json", "model.onnx", "shards/00000.parquet"])
def test_a_file_that_may_not_grow_is_named_and_removed(
    good: Path, tmp_path: Path, target: str
) -> None:
    """The writing itself fails here, in the middle of the file."""
    out, size = tmp_path / "emb", (good / "emb" / target).stat().st_size
    if target == "shards/00000.parquet":  # smaller than the model, which is there already
        assert embed(good, out).code == 0
        for shard in (out / "shards").iterdir():
            shard.unlink()
    said = limited(embedding(good, out), size - 1)
    assert said == (
        3,
        "",
        f"featkit: {out}/{target} cannot be written: File too large; choose another path.\n",
    )
    assert [path.name for path in out.rglob("*.partial-*")] == []
    assert digests(out).items() < digests(good / "emb").items()
    assert embed(good, out).code == 0
    assert digests(out) == digests(good / "emb")


@pytest.mark.parametrize("room", [-1, 1000], ids=["model", "catalogue"])
def test_an_index_that_finds_no_room_is_not_there_at_all(
    good: Path, tmp_path: Path, room: int
) -> None:
    command: list[object] = ["index", good / "emb", "--out", tmp_path / "i"]
    said = limited(command, (good / "m.onnx").stat().st_size + room)
    assert said.code == 3
    assert is_one_sentence(said)
    assert f"{tmp_path}/i" in said.error
    assert list(tmp_path.iterdir()) == []
    assert run_featkit(*command).code == 0


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
@pytest.mark.parametrize("command", ["embed", "index"])
def test_a_folder_that_may_not_be_written_is_named(
    good: Path, tmp_path: Path, command: str, mode: int
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    arguments = (
        embedding(good, place / "new")
        if command == "embed"
        else ["index", good / "emb", "--out", place / "new"]
    )
    place.chmod(mode)
    try:
        said = Said(*run_python(RUN, *arguments, ordinary_user=True))
    finally:
        place.chmod(0o755)
    assert said.code == 3
    assert is_one_sentence(said)
    assert re.match(
        rf"featkit: {place}/new cannot be (written|used): Permission denied; ", said.error
    )
    assert list(place.iterdir()) == []


def test_second_writer_learns_who_holds_the_index(
    good: Path,
) -> None:
    index, query = good / "photos.index", good / "images" / "003.jpg"
    before = digests(index)
    holder = start_python(HOLD, index, stdin=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        said = run_featkit("index", good / "emb", "--out", index)
        found = run_featkit("search", index, query, "-k", 1)
    finally:
        _, error = holder.communicate("\n", timeout=60)
    assert said.code == 3
    assert is_one_sentence(said)
    assert re.search(
        rf"{index} is being written by process {holder.pid} on \S+ \(.*\); wait for it to"
        r" finish, or stop it\.",
        said.error,
    )
    assert found.code == 0
    assert found.out.splitlines()[2].split()[1:3] == ["1.0000", "003.jpg"]
    assert (holder.returncode, error) == (0, "")
    assert digests(index)["vectors.f32"] == before["vectors.f32"]
