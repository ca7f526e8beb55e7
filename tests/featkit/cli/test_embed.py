"""The command `featkit embed`: what it prints and ends with, whatever the images are and whenever
it is stopped."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featkit.embedder import Embedder
from tests.commands import (
    Said,
    digests,
    end,
    is_one_sentence,
    run_featkit,
    start_featkit,
    wait_until,
)
from tests.featkit.backends.engines import needs_bf16, needs_openvino
from tests.featkit.sources.files import write_tar
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file
from tests.odd_images import READABLE, UNREADABLE, write_odd_images

# many enough that a command is still at work when a test stops it, however busy the machine
MANY, SHARD_SIZE = 400, 4


def num_shards(out: Path) -> int:
    """Return the number of existing shards."""
    return len(list((out / "shards").glob("*.parquet")))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of every kind, four of which cannot be read."""
    return write_odd_images(tmp_path_factory.mktemp("odd") / "images")


def embedding(images: Path, model: Path, out: Path) -> list[object]:
    """Return the arguments that embed `images` into small shards."""
    return ["embed", images, "--model", model, "--out", out, "--shard-size", SHARD_SIZE]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """MANY images in `many` and all their embeddings, made without a stop, in `emb`."""
    folder = tmp_path_factory.mktemp("unbroken")
    draw_folder(folder / "many", MANY)
    run = [*embedding(folder / "many", model, folder / "emb"), "--threads", 1]
    assert run_featkit(*run, "--quiet").code == 0
    return folder


def test_embed_says_what_it_made_and_what_comes_next(
    model: Path, images: Path, tmp_path: Path
) -> None:
    command = ["embed", images, "--model", model, "--out", tmp_path / "emb"]
    first, again = run_featkit(*command), run_featkit(*command)
    made = r"6 of 6 images embedded by test-0 \(16 dimensions\) on onnxruntime \w+, "
    assert re.fullmatch(
        rf"{made}[\d,.]+ images/s\.\nNext: featkit index {tmp_path}/emb --out photos\.index\n",
        first.out,
    )
    assert re.match(rf"{made}all by an earlier run\.\n", again.out)
    assert (first.code, first.error, again.code, again.error) == (0, "", 0, "")


def test_the_json_result_counts_the_whole_folder_and_this_run(
    model: Path, odd: Path, tmp_path: Path
) -> None:
    command = ["embed", odd, "--model", model, "--out", tmp_path / "emb", "--json"]
    first, again = (json.loads(run_featkit(*command).out) for _ in range(2))
    assert first["items"] == again["items"] == len(READABLE) + len(UNREADABLE)
    assert (first["embedded_now"], again["embedded_now"]) == (first["items"], 0)
    assert first["failed"] == again["failed"] == len(UNREADABLE)
    assert first["failures"] == again["failures"]
    assert [failure["key"] for failure in first["failures"]] == sorted(UNREADABLE)
    assert (first["model"], first["fingerprint"]) == (
        "test-0",
        Embedder(model, threads=1).fingerprint,
    )
    assert first["out"] == f"{tmp_path}/emb"


def test_what_is_passed_over_is_said_and_kept(model: Path, images: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(images, tmp_path / "mixed")
    for name in (
        "a.xmp",
        "b.xmp",
        "c.mp4",
        "@eaDir/d.jpg",
        "not-wanted/e.jpg",
        "emb-old/plan.json",
        "emb-old/shards/x",
    ):
        (mixed / name).parent.mkdir(exist_ok=True)
        (mixed / name).write_bytes(b"")
    (mixed / "link").symlink_to(images)
    command = ["embed", mixed, "--model", model, "--exclude", "not-wanted"]
    said = run_featkit(*command, "--out", tmp_path / "emb")
    skipped = {
        ".mp4": 1,
        ".xmp": 2,
        "excluded folder": 1,
        "featkit folder": 1,
        "link to a folder": 1,
        "system folder (@eaDir)": 1,
    }
    line = (
        "Skipped: 2 .xmp, 1 .mp4, 1 excluded folder, 1 featkit folder, 1 link to a folder, 1"
        " system folder (@eaDir).\n"
    )
    assert (said.code, said.error) == (0, "")
    assert "6 of 6 images embedded" in said.out
    assert line in said.out
    assert json.loads((tmp_path / "emb" / "plan.json").read_text())["skipped"] == skipped
    as_json = json.loads(run_featkit(*command, "--out", tmp_path / "emb-json", "--json").out)
    assert as_json["skipped"] == skipped
    followed = json.loads(
        run_featkit(*command, "--out", tmp_path / "followed", "--follow-links", "--json").out
    )
    assert followed["items"] == 12
    only = json.loads(
        run_featkit(
            *command, "--include", "link/*0*", "--follow-links", "--out", tmp_path / "o", "--json"
        ).out
    )
    assert only["items"] == len(list(images.glob("*0*")))


def test_out_folder_inside_the_images_is_never_read(
    model: Path, images: Path, tmp_path: Path
) -> None:
    inside = shutil.copytree(images, tmp_path / "inside")
    command = ["embed", inside, "--model", model, "--json"]
    first, again = (
        json.loads(run_featkit(*command, "--out", inside / "emb").out) for _ in range(2)
    )
    assert (first["items"], first["embedded_now"], again["embedded_now"]) == (6, 6, 0)
    assert (
        run_featkit("index", inside / "emb", "--out", inside / "photos.index", "--quiet").code == 0
    )
    other = json.loads(run_featkit(*command, "--out", inside / "emb2").out)
    assert (other["items"], other["failed"]) == (6, 0)
    assert json.loads(run_featkit(*command, "--out", inside / "emb").out)["embedded_now"] == 0


def test_bad_images_are_listed_and_the_others_embedded(
    model: Path, odd: Path, tmp_path: Path
) -> None:
    said = run_featkit("embed", odd, "--model", model, "--out", tmp_path / "emb")
    assert (said.code, said.error) == (0, "")
    assert said.out.startswith("Without an embedding\n")
    assert f"{len(READABLE)} of {len(READABLE) + len(UNREADABLE)} images embedded" in said.out
    rows = pq.read_table(tmp_path / "emb" / "shards").to_pylist()
    assert [row["key"] for row in rows] == sorted([*READABLE, *UNREADABLE])
    for row in rows:
        name = row["key"]
        if name in UNREADABLE:
            assert name in said.out
            assert UNREADABLE[name] in row["error"]
            assert row["embedding"] is row["thumbnail"] is row["width"] is row["height"] is None
        else:
            assert (row["error"], row["width"], row["height"]) == (None, *READABLE[name])
            assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5)
            assert row["thumbnail"][:3] == b"\xff\xd8\xff"


def test_strict_ends_with_4_after_all_the_work(model: Path, odd: Path, tmp_path: Path) -> None:
    command = ["embed", odd, "--model", model, "--out", tmp_path / "emb", "--strict"]
    for _ in range(2):  # a run that finds all done is as strict
        said = run_featkit(*command)
        assert said.code == 4
        assert (
            said.error
            == f"featkit: {len(UNREADABLE)} of {len(READABLE) + len(UNREADABLE)} images have no"
            " embedding.\n"
        )
        assert "Next: featkit index" in said.out
    assert (
        run_featkit(
            "embed", odd / "good.jpg", "--model", model, "--out", tmp_path / "good", "--strict"
        ).code
        == 0
    )


def test_only_the_first_twenty_failures_are_listed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(25):
        (tmp_path / "images" / f"{number:02d}.jpg").touch()
    said = run_featkit(
        "embed",
        tmp_path / "images",
        "--model",
        model,
        "--out",
        tmp_path / "emb",
        "--shard-size",
        "7",
    )
    assert re.findall(r"^(\d\d)\.jpg ", said.out, re.MULTILINE) == [
        f"{number:02d}" for number in range(20)
    ]
    assert "... and 5 more; the column `error` gives the reason for each." in said.out
    assert "0 of 25 images embedded" in said.out


def test_the_limits_are_those_of_the_flags(model: Path, images: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in sorted(images.iterdir())]
    limit = sorted(sizes)[2]
    by_bytes = run_featkit(
        "embed", images, "--model", model, "--out", tmp_path / "a", "--max-bytes", limit, "--json"
    )
    assert json.loads(by_bytes.out)["failed"] == sum(size > limit for size in sizes)
    for pixels, failed in ((80 * 60, 0), (80 * 60 - 1, 6)):
        command = [
            "embed",
            images,
            "--model",
            model,
            "--out",
            tmp_path / str(pixels),
            "--max-pixels",
            pixels,
            "--json",
        ]
        assert json.loads(run_featkit(*command).out)["failed"] == failed


@pytest.mark.parametrize("option", ["--max-bytes", "--max-pixels"])
@pytest.mark.parametrize("limit", [0, -1])
def test_limits_that_no_image_meets_are_refused(
    model: Path, images: Path, tmp_path: Path, option: str, limit: int
) -> None:
    said = run_featkit("embed", images, "--model", model, "--out", tmp_path / "emb", option, limit)
    assert said.code == 2
    assert is_one_sentence(said)
    assert said.error == f"featkit: {option} is {limit}; it has to be 1 or more.\n"
    assert list(tmp_path.iterdir()) == []


def test_image_beyond_the_pixel_limit_is_a_row_with_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    # between once and twice what Pillow allows
    Image.new("1", (12_000, 12_000)).save(tmp_path / "images" / "huge.png")
    draw_image(0).save(tmp_path / "images" / "small.png")
    said = end(
        start_featkit(
            "embed",
            tmp_path / "images",
            "--model",
            model,
            "--out",
            tmp_path / "emb",
            "--json",
            "--quiet",
        )
    )
    assert "DecompressionBombWarning" not in said.error
    assert (said.code, said.error) == (0, "")
    ((key, error),) = [failure.values() for failure in json.loads(said.out)["failures"]]
    assert key == "huge.png"
    assert "has 144,000,000 pixels (12000×12000), more than the limit of 100,000,000" in error


def test_a_second_run_says_what_it_embedded_again(model: Path, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 4)
    (photos / "001.jpg").write_bytes(b"broken")
    command = ["embed", photos, "--model", model, "--out", tmp_path / "emb"]
    assert "Embedded again" not in run_featkit(*command).out
    assert (
        "Failed images are tried again when their files change, or with --retry.\n"
        in run_featkit(*command).out
    )
    shutil.copyfile(photos / "002.jpg", photos / "001.jpg")
    assert "Embedded again: 1 because the file has changed.\n" in run_featkit(*command).out
    (photos / "003.jpg").write_bytes(b"broken")
    assert run_featkit(*command, "--strict").code == 4
    said = run_featkit(*command, "--retry")
    assert "Embedded again: 1 that had failed.\n" in said.out
    as_json = json.loads(run_featkit(*command, "--retry", "--rehash", "--json").out)
    assert (as_json["embedded_now"], as_json["changed"], as_json["retried"], as_json["failed"]) == (
        1,
        0,
        1,
        1,
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_embedded_is_an_error_and_makes_no_index(
    model: Path, tmp_path: Path, as_json: bool
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (photos / name).write_bytes(b"broken")
    out = tmp_path / "emb"
    for _ in range(2):  # also where an earlier run did it
        said = run_featkit(
            "embed", photos, "--model", model, "--out", out, *(["--json"] if as_json else [])
        )
        assert said.code == 2
        assert said.error.startswith(
            "featkit: None of the 2 images could be embedded. The first: a.jpg "
        )
        assert said.error.count("\n") == 1
        assert "Next" not in said.out
        if as_json:
            assert json.loads(said.out)["failed"] == 2
    assert run_featkit("embed", photos, "--model", model, "--out", out, "--strict").code == 4
    said = run_featkit("index", out, "--out", tmp_path / "photos.index")
    assert is_one_sentence(said)
    assert said.code == 2
    assert (
        "emb holds no vectors. None of the 2 images could be embedded. The first: a.jpg "
        in said.error
    )
    assert not (tmp_path / "photos.index").exists()


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_any_moment_costs_no_byte(
    unbroken: Path, model: Path, tmp_path: Path, seed: int
) -> None:
    out, expected = tmp_path / "emb", digests(unbroken / "emb")
    command = [*embedding(unbroken / "many", model, out), "--threads", 2]
    dice = random.Random(seed)
    killed = 0
    for moment in [0, *sorted(dice.sample(range(1, 25), 4))]:
        process = start_featkit(*command)
        wait_until(lambda moment=moment: out.is_dir() and num_shards(out) >= moment, process)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        killed += end(process).code == -signal.SIGKILL
        there = {name: digest for name, digest in digests(out).items() if ".partial-" not in name}
        assert there.items() <= expected.items()
    assert killed > 1
    assert end(start_featkit(*command)).code == 0
    assert digests(out) == expected


def test_ctrl_c_ends_at_a_whole_shard_and_embed_resumes(
    unbroken: Path, model: Path, tmp_path: Path
) -> None:
    out, expected = tmp_path / "emb", digests(unbroken / "emb")
    command = [*embedding(unbroken / "many", model, out), "--threads", 1]
    process = start_featkit(*command)
    wait_until(lambda: num_shards(out) >= 3, process)
    process.send_signal(signal.SIGINT)
    said = end(process)
    assert said.code == 130
    assert is_one_sentence(said)
    kept = re.search(
        rf"Stopped by Ctrl-C with (\d+) of {MANY} items in {out}; the same command continues from"
        r" there\.",
        said.error,
    )
    assert kept is not None
    assert int(kept[1]) == num_shards(out) * SHARD_SIZE < MANY
    assert digests(out).items() < expected.items()
    assert run_featkit(*command).code == 0
    assert digests(out) == expected


def test_a_second_process_is_told_who_writes_the_folder(
    unbroken: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "emb"
    command = embedding(unbroken / "many", model, out)
    first = start_featkit(*command)
    try:
        wait_until(lambda: num_shards(out) >= 1, first)
        # in the middle of it, for as long as the second one needs
        first.send_signal(signal.SIGSTOP)
        second = run_featkit(*command)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.code == 3
    assert is_one_sentence(second)
    assert f"{out} is being written by process {first.pid} on " in second.error
    assert f"embed {unbroken / 'many'}" in second.error
    assert second.error.endswith("; wait for it to finish, or stop it.\n")
    assert end(first).code == 0
    assert digests(out) == digests(unbroken / "emb")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--shard-size", "3"],
            "was begun with --shard-size 1024, not 3; continue with --shard-size 1024, or choose"
            " another --out.",
        ),
        (
            ["--max-pixels", "9"],
            "was begun with --max-pixels 100000000, not 9; continue with --max-pixels 100000000, or"
            " choose another --out.",
        ),
        (
            ["--max-bytes", "9"],
            "was begun with --max-bytes 67108864, not 9; continue with --max-bytes 67108864, or"
            " choose another --out.",
        ),
        (
            ["--model", "other.onnx"],
            "was begun with another model, test-0 (FINGERPRINT), not test-1 (",
        ),
    ],
)
def test_a_folder_of_other_work_is_refused_and_left_as_it_was(
    model: Path, images: Path, other_model: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    out = tmp_path / "emb"
    assert run_featkit("embed", images, "--model", model, "--out", out).code == 0
    before = digests(out)
    flags = [str(other_model) if flag == "other.onnx" else flag for flag in flags]
    said: Said = run_featkit(
        "embed", images, "--out", out, *([] if "--model" in flags else ["--model", model]), *flags
    )
    assert said.code == 2
    assert is_one_sentence(said)
    assert words.replace("FINGERPRINT", Embedder(model, threads=1).fingerprint[:12]) in said.error
    assert digests(out) == before


def test_the_model_of_the_folder_goes_on_with_it(model: Path, images: Path, tmp_path: Path) -> None:
    """Do what the refusal of another model advises."""
    lost = shutil.copyfile(model, tmp_path / "lost.onnx")
    assert (
        run_featkit(
            "embed", images, "--model", lost, "--out", tmp_path / "emb", "--shard-size", "2"
        ).code
        == 0
    )
    lost.unlink()
    expected = digests(tmp_path / "emb")
    (tmp_path / "emb" / "shards" / "00001.parquet").unlink()
    command = [
        "embed",
        images,
        "--model",
        tmp_path / "emb" / "model.onnx",
        "--out",
        tmp_path / "emb",
        "--shard-size",
        "2",
    ]
    assert run_featkit(*command).code == 0
    assert digests(tmp_path / "emb") == expected


@needs_bf16
def test_an_index_of_vectors_in_bf16_is_searched_in_bf16(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["embed", images, "--model", model, "--out", "emb"]
    said = run_featkit(*command, "--precision", "bf16", "--json")
    assert (said.code, said.error, json.loads(said.out)["backend"]) == (0, "", "openvino CPU bf16")
    assert json.loads((tmp_path / "emb" / "plan.json").read_text())["run"] == "openvino bf16"
    assert json.loads(run_featkit(*command, "--json").out)["backend"] == "openvino CPU bf16"
    refused = run_featkit(*command, "--backend", "onnxruntime")
    assert refused.code == 2
    assert (
        "emb was begun with openvino bf16, not onnxruntime fp32; continue with --backend openvino"
        in refused.error
    )
    assert run_featkit("index", "emb", "--out", "i").code == 0
    (hit,) = json.loads(run_featkit("search", "i", images / "002.jpg", "-k", "1", "--json").out)
    assert hit["key"] == "002.jpg"
    assert hit["score"] == pytest.approx(1, abs=1e-6)  # in fp32 the query would be a little off
    run_featkit("embed", images, "--model", model, "--out", "plain")
    mixed = run_featkit("index", "plain", "--out", "i")
    assert mixed.code == 2
    assert is_one_sentence(mixed)
    assert (
        "plain was embedded by onnxruntime fp32, but i by openvino bf16; prove that both give"
        in mixed.error
    )


@needs_openvino
def test_embed_says_which_engine_it_was_told_to_use(
    model: Path, images: Path, tmp_path: Path
) -> None:
    engine = ["--backend", "openvino", "--precision", "fp32"]
    said = run_featkit("embed", images, "--model", model, "--out", tmp_path / "emb", *engine)
    assert (said.code, said.error) == (0, "")
    assert "6 of 6 images embedded by test-0 (16 dimensions) on openvino CPU fp32, " in said.out


def test_an_engine_that_does_not_exist_is_one_message(
    tmp_path: Path, images: Path, model: Path
) -> None:
    said = run_featkit(
        "embed", images, "--model", model, "--out", tmp_path / "emb", "--precision", "int4"
    )
    assert (said.code, said.out) == (2, "")
    assert "--precision" in said.error
    assert not (tmp_path / "emb").exists()


def test_a_shard_that_cannot_be_read_does_not_cost_the_others(
    model: Path, images: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    for name in ("1", "3"):
        write_tar(
            shards / f"{name}.tar",
            [(file.name, file.read_bytes()) for file in sorted(images.rglob("*.jpg"))[:2]],
        )
    (shards / "2.tar").write_bytes(b"")
    command = ("embed", shards, "--model", model, "--out")
    said = run_featkit(*command, tmp_path / "emb")
    assert said.code == 0
    assert "4 of 5 images embedded" in said.out
    assert run_featkit(*command, tmp_path / "strict", "--strict").code == 4
    rows = pq.read_table(tmp_path / "emb" / "shards", columns=["key", "error"]).to_pylist()
    errors = {row["key"]: row["error"] for row in rows if row["error"] is not None}
    assert errors == {"2.tar": f"{shards / '2.tar'} is empty (0 bytes); copy or download it again."}


def test_the_column_of_the_images_is_said_chosen_and_kept(
    model: Path, images: Path, tmp_path: Path
) -> None:
    data = [file.read_bytes() for file in sorted(images.rglob("*.jpg"))[:2]]
    struct = pa.array([{"bytes": each, "path": "x"} for each in data])
    table = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": pa.array([b"no image"] * 2), "photo": struct, "other": struct}), table
    )
    command = ("embed", table, "--model", model, "--out", tmp_path / "emb")
    said = run_featkit(*command)
    assert said.code == 0
    assert "read from the column photo; --column can choose other or image instead." in " ".join(
        said.out.split()
    )
    assert "2 of 2 images embedded" in said.out
    assert json.loads((tmp_path / "emb" / "plan.json").read_text())["column"] == "photo"
    refused = run_featkit(*command, "--column", "other")
    assert refused.code == 2
    assert (
        "was begun with images from the column photo, not other; continue with --column photo"
        in " ".join(refused.error.split())
    )
    assert run_featkit(*command, "--column", "photo").code == 0
    said = run_featkit(*command[:-1], tmp_path / "b", "--column", "other", "--json")
    assert (json.loads(said.out)["column"], json.loads(said.out)["failed"]) == ("other", 0)


def test_an_archive_that_was_mended_is_named_with_the_way_on(tmp_path: Path) -> None:
    draw_folder(tmp_path / "p", 1)
    (tmp_path / "p" / "t.tar").write_bytes(b"")
    model = make_model_file(tmp_path / "m.onnx")
    command = ["embed", tmp_path / "p", "--model", model, "--quiet", "--out"]
    assert run_featkit(*command, tmp_path / "e").code == 0
    write_tar(tmp_path / "p" / "t.tar", [("x.jpg", (tmp_path / "p" / "000.jpg").read_bytes())])
    said = run_featkit(*command, tmp_path / "e")
    assert is_one_sentence(said)
    assert (
        "t.tar could not be read then, but its images can be now. Embed it as it is now into"
        " another --out" in said.error
    )
    assert run_featkit(*command, tmp_path / "e2").code == 0
    for folder, words in (
        ("e", "1 image added, 1 without an embedding"),
        ("e2", "1 image added, 1 unchanged"),
    ):
        assert words in run_featkit("index", tmp_path / folder, "--out", tmp_path / "i").out
