"""Killed at any moment, embed, index and train lose nothing: run again, each ends with the bytes of
an unbroken run."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import yaml

from featkit.embeddings import PLAN_FILE, Embeddings
from featkit.index import Index
from featkit_train.settings import with_settings
from tests.commands import digests, run_featkit
from tests.end_to_end.killing import kill_at_random
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.train.small import SMALL

IMAGES, SHARD_SIZE = 48, 6
# By default 30 kills in all, and 1,000 among the slow tests.
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))


def kills(fast: int, slow: int) -> pytest.MarkDecorator:
    """Parametrize a test by how often it kills."""
    return pytest.mark.parametrize("count", [fast, pytest.param(slow, marks=SLOW)])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a model, and the embeddings folder and index of runs that nothing broke."""
    folder = tmp_path_factory.mktemp("kills")
    draw_folder(folder / "images", IMAGES)
    (folder / "images" / "torn.jpg").write_bytes((folder / "images" / "000.jpg").read_bytes()[:200])
    make_model_file(folder / "m.onnx")
    assert run_featkit(*embed_command(folder, folder / "emb")).code == 0
    assert run_featkit(*index_command(folder, folder / "whole.index")).code == 0
    return folder


def embed_command(work: Path, out: Path) -> list[str]:
    """The command line that embeds the images."""
    options = ["--model", work / "m.onnx", "--shard-size", SHARD_SIZE, "--threads", 2, "--quiet"]
    return [str(word) for word in ("embed", work / "images", "--out", out, *options)]


def index_command(work: Path, out: Path) -> list[str]:
    """The command line that indexes the embeddings."""
    return [str(word) for word in ("index", work / "emb", "--out", out, "--quiet")]


@kills(12, 400)
def test_embed_killed_at_random_ends_with_the_same_bytes(
    work: Path, tmp_path: Path, count: int
) -> None:
    out, expected = tmp_path / "emb", digests(work / "emb")

    def at_any_moment() -> None:
        if not (out / PLAN_FILE).exists():
            return
        Embeddings.open(out)
        there = {name: digest for name, digest in digests(out).items() if ".partial-" not in name}
        assert there.items() <= expected.items()

    def at_the_end() -> None:
        assert digests(out) == expected
        shutil.rmtree(out)

    command = embed_command(work, out)
    seen = kill_at_random(
        lambda: command,
        kills=count,
        rng=random.Random(0),
        after_kill=at_any_moment,
        after_finish=at_the_end,
    )
    assert seen.killed == count


def contents(path: Path) -> tuple[list[tuple[int, str, int | None, bytes | None]], bytes]:
    """Items with their thumbnails, and the bytes of the committed vectors."""
    with Index.open(path) as index:
        items = index.items(0, IMAGES + 1)
        rows = [(item.id, item.key, item.width, index.thumbnail(item.id)) for item in items]
        vectors = b"".join(index.vector(item.id).tobytes() for item in items)
    return rows, vectors


@kills(12, 400)
def test_index_killed_at_random_ends_with_the_same_items(
    work: Path, tmp_path: Path, count: int
) -> None:
    out = tmp_path / "photos.index"
    expected_rows, expected_vectors = contents(work / "whole.index")

    def at_any_moment() -> None:
        if not out.exists():
            return
        rows, vectors = contents(out)
        assert rows == expected_rows[: len(rows)]
        assert vectors == expected_vectors[: len(vectors)]
        # A transaction is a shard, one of which has a row without an embedding.
        assert len(rows) % SHARD_SIZE == 0 or len(rows) == len(expected_rows)

    def at_the_end() -> None:
        assert contents(out) == (expected_rows, expected_vectors)
        shutil.rmtree(out)

    command = index_command(work, out)
    kill_at_random(
        lambda: command,
        kills=count,
        rng=random.Random(1),
        after_kill=at_any_moment,
        after_finish=at_the_end,
    )


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics, in the order in which they stand there."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@kills(6, 200)
def test_train_killed_at_random_ends_with_the_same_weights(
    work: Path, tmp_path: Path, count: int
) -> None:
    run, config = tmp_path / "run", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(with_settings(SMALL, {"run.checkpoint_every": 1})))
    first = [
        "train",
        "dino",
        str(work / "images"),
        "--out",
        str(run),
        "--recipe",
        str(config),
        "--quiet",
    ]
    assert run_featkit(*first).code == 0
    expected_losses, expected = (
        losses(run),
        hashlib.sha256((run / "backbone.safetensors").read_bytes()).hexdigest(),
    )
    shutil.rmtree(run)

    def command() -> list[str]:
        return [*first, "--resume"] if (run / "config.yaml").exists() else first

    def at_the_end() -> None:
        assert losses(run) == expected_losses
        assert hashlib.sha256((run / "backbone.safetensors").read_bytes()).hexdigest() == expected
        shutil.rmtree(run)

    kill_at_random(
        command, kills=count, rng=random.Random(2), after_kill=lambda: None, after_finish=at_the_end
    )
