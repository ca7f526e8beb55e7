"""Weights come from shared caches or from their authors' servers; otherwise the message says what
to download.

The hub and the servers are small ones on this machine; nothing here reaches beyond it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils
import pytest
import torch

from featkit.errors import EnvironmentProblem
from featkit_train.published.downloads import HUB_FILES, download, download_timm, fetch_repository
from featkit_train.published.pretrained import load_pretrained, load_published
from featkit_train.published.zoo import PUBLISHED, Published
from tests.export.backbones import with_depth
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision, import_quietly
from tests.train import published_files as published

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Serve fixed answers on this machine; yield the address and a list of the requests."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            answer(self)

        do_HEAD = do_CONNECT = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def giving(content: bytes, *, length: int | None = None) -> Answer:
    """The content, of which more may have been promised than comes."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if length is not None:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(content)

    return answer


def refusing(code: int, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def hanging_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def unused_address() -> str:
    with serving(hanging_up) as (address, _):
        return address


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of this test's own, no proxy, no token."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    allow_torchvision()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts the hub at another address."""
    huggingface_hub.close_session()

    def move(address: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    yield move
    huggingface_hub.close_session()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def by_url(url: str, *, name: str = "dino_vits16") -> Published:
    return dataclasses.replace(with_depth(PUBLISHED[name], 1), hub=None, url=url)


def cache(tmp_path: Path, repository: str) -> Path:
    """The folder of a repository as huggingface_hub keeps it, yet to be filled."""
    place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    folder = place / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return folder


# The hub


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["dinov2_vits14", "dino_vits16"])
def test_offline_message_names_files_address_and_command(name: str) -> None:
    repository = PUBLISHED[name].hub
    command = f"featkit export {name} --weights FOLDER --out m.onnx"
    with refused(
        "cannot be reached",
        f"https://huggingface.co/{repository}",
        command,
        *HUB_FILES,
        error=EnvironmentProblem,
    ):
        download(PUBLISHED[name], quiet=True)
    with refused(command, error=EnvironmentProblem):
        load_pretrained(name, quiet=True)


@pytest.mark.usefixtures("offline")
def test_offline_message_names_the_license_of_a_gated_model() -> None:
    words = (
        "cannot be reached",
        "DINOv3 License",
        "https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m",
    )
    with refused(*words, error=EnvironmentProblem):
        download(PUBLISHED["dinov3_vits16"], quiet=True)


def test_a_gated_repository_says_what_to_accept_and_where(hub: Callable[[str], None]) -> None:
    with serving(
        refusing(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model is restricted.")
    ) as (address, asked):
        hub(address)
        with refused(
            "facebook/dinov3-vits16-pretrain-lvd1689m is gated",
            "DINOv3 License",
            "License at https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m",
            "hf auth login",
            "featkit export dinov3_vits16 --weights FOLDER",
            error=EnvironmentProblem,
        ):
            download(PUBLISHED["dinov3_vits16"], quiet=True)
    assert asked


def as_the_hub(**instead: Answer) -> Answer:
    """A hub with one file; `info`, `tree`, `head` and `get` answer in its place."""
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        headers: dict[str, str] = {}
        if "/resolve/" in request.path:
            step, body = ("head" if request.command == "HEAD" else "get"), WEIGHTS
            headers = {"ETag": f'"{sha256}"'}
        elif "/tree/" in request.path:
            pointer = {"oid": sha256, "size": len(WEIGHTS), "pointerSize": 100}
            entry = {
                "type": "file",
                "path": "model.safetensors",
                "size": len(WEIGHTS),
                "oid": "a" * 40,
                "lfs": pointer,
            }
            step, body = "tree", json.dumps([entry]).encode()
        else:
            step, body = (
                "info",
                json.dumps({"id": "facebook/dinov2-small", "sha": COMMIT, "siblings": []}).encode(),
            )
        if step in instead:
            instead[step](request)
            return
        request.send_response(200)
        for name, value in {
            **headers,
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(body)),
        }.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return answer


WEIGHTS = b"weights" * 100
PAGE = giving(b"<!doctype html><html>Log in to the network</html>", length=49)
FAILURES: dict[str, tuple[Answer | None, str]] = {
    "no login": (refusing(401), "asks for a login (401)"),
    "forbidden": (as_the_hub(info=refusing(403)), "refuses access (403)"),
    "a file forbidden": (as_the_hub(head=refusing(403)), "refuses access (403)"),
    "not there": (refusing(404), "has nothing with that name (404)"),
    "too many requests": (as_the_hub(info=refusing(429, Retry_After="3")), "(429); wait 3 seconds"),
    "in trouble": (as_the_hub(info=refusing(500)), "has an internal error (500)"),
    "out of service": (as_the_hub(get=refusing(503)), "has an internal error (503)"),
    "behind a login page": (as_the_hub(info=PAGE), "the answer is a page of another server"),
    "a page for the list of files": (
        as_the_hub(tree=PAGE),
        "the answer is a page of another server",
    ),
    "a page for a file": (
        as_the_hub(head=PAGE, get=PAGE),
        "the answer is a page of another server",
    ),
    "another server's JSON": (
        as_the_hub(info=giving(b'{"error": "no"}', length=15)),
        "the answer is a page of another server",
    ),
    "of other bytes": (as_the_hub(get=giving(b"y" * 700, length=700)), "the sha256"),
    "of another length": (
        as_the_hub(get=giving(b"y" * 9, length=9)),
        "a different number of bytes",
    ),
    "hanging up": (hanging_up, ""),
    "not there at all": (None, ""),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_hub_that_fails_is_told_by_what_it_does(
    kind: str, hub: Callable[[str], None], tmp_path: Path
) -> None:
    answer, said = FAILURES[kind]
    words = (
        [said, "repeat the command"]
        if kind == "of other bytes"
        else [said, "facebook/dinov2-small", *HUB_FILES]
    )
    if answer is None:
        hub(unused_address())
        with refused(*words, error=EnvironmentProblem):
            download(PUBLISHED["dinov2_vits14"], quiet=True)
        return
    with serving(answer) as (address, asked):
        hub(address)
        with refused(*words, error=EnvironmentProblem):
            download(PUBLISHED["dinov2_vits14"], quiet=True)
        assert asked
    assert not [path for path in (tmp_path / "hub").rglob("*.safetensors") if path.is_file()]


def test_a_hub_that_answers_is_believed(hub: Callable[[str], None]) -> None:
    with serving(as_the_hub()) as (address, _):
        hub(address)
        assert (
            download(PUBLISHED["dinov2_vits14"], quiet=True) / "model.safetensors"
        ).read_bytes() == WEIGHTS


def test_a_name_that_is_no_repository_is_refused() -> None:
    with refused("a/b/c", "OWNER/NAME"):
        fetch_repository("a/b/c", ("model.safetensors",), by_hand="featkit export FOLDER")


def test_a_proxy_that_lets_nobody_through_is_told_alike(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[[str], None]
) -> None:
    with serving(refusing(403)) as (address, asked):
        monkeypatch.setenv("HTTPS_PROXY", address)
        monkeypatch.delenv("NO_PROXY")
        hub("https://hub.invalid")
        with refused("facebook/dinov2-small", *HUB_FILES, error=EnvironmentProblem):
            download(PUBLISHED["dinov2_vits14"], quiet=True)
    assert asked == ["CONNECT hub.invalid:443"]


@pytest.mark.usefixtures("offline")
def test_what_the_cache_holds_is_loaded_without_a_network(tmp_path: Path) -> None:
    model = published.reference("dinov2_vits14", depth=1)
    import_quietly("transformers").utils.logging.disable_progress_bar()
    folder = cache(tmp_path, "facebook/dinov2-small")
    model.save_pretrained(folder)
    assert download(PUBLISHED["dinov2_vits14"], quiet=True) == folder
    backbone, info = load_published(with_depth(PUBLISHED["dinov2_vits14"], 1), quiet=True)
    images = published.draw_images(14, 2, 3)
    with torch.no_grad():
        published.assert_same(backbone(images), published.see(model, images))
    assert info.origin["source"] == "hf.co/facebook/dinov2-small"


@pytest.mark.usefixtures("offline")
def test_a_cache_without_the_weights_is_no_cache(tmp_path: Path) -> None:
    (cache(tmp_path, "facebook/dinov2-small") / "config.json").write_text("{}")
    with refused("facebook/dinov2-small", "model*.safetensors", error=EnvironmentProblem):
        download(PUBLISHED["dinov2_vits14"], quiet=True)


def test_nothing_but_the_files_that_are_needed_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        calls.append((repository, allow_patterns))
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download(PUBLISHED["dinov3_vits16"], quiet=True) == tmp_path
    assert calls.pop() == (PUBLISHED["dinov3_vits16"].hub, list(HUB_FILES))
    timm = import_quietly("timm")
    for arch, repository in {
        "test_vit.r160_in1k": "timm/test_vit.r160_in1k",
        "resnet10t": "timm/resnet10t.c3_in1k",  # the tag that timm takes where none is given
        "vit_small_patch14_dinov2": "timm/vit_small_patch14_dinov2.lvd142m",
    }.items():
        settings = timm.create_model(arch, num_classes=0).pretrained_cfg
        assert download_timm(arch, settings, quiet=True) == tmp_path / "model.safetensors"
        assert calls.pop() == (repository, ["model.safetensors"])


@pytest.mark.usefixtures("offline")
def test_a_timm_model_out_of_reach_names_its_file_and_command() -> None:
    with refused(
        "https://huggingface.co/timm/test_vit.r160_in1k",
        "featkit export timm:test_vit.r160_in1k --weights model.safetensors",
        error=EnvironmentProblem,
    ):
        load_pretrained("timm:test_vit.r160_in1k", quiet=True)


@pytest.mark.usefixtures("offline")
def test_a_bar_that_the_environment_forbids_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in ("huggingface_hub.constants", "huggingface_hub.utils.tqdm"):
        monkeypatch.setattr(sys.modules[place], "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with refused("facebook/dinov2-small", error=EnvironmentProblem):  # and not a warning
        download(PUBLISHED["dinov2_vits14"])


# Authors' servers


def test_a_file_is_fetched_once_and_stays_in_torchs_cache(tmp_path: Path) -> None:
    model = published.reference("dino_vits16", depth=1)
    torch.save(published.official("dino_vits16", model), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    with serving(giving(content, length=len(content))) as (address, asked):
        row = by_url(f"{address}/dino_deitsmall16_pretrain.pth")
        path = download(row, quiet=True)
        assert path.parent == tmp_path / "torch" / "hub" / "checkpoints"
        assert path.read_bytes() == content
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        assert download(row, quiet=True) == path
        backbone, info = load_published(row, quiet=True)
    assert asked == ["GET /dino_deitsmall16_pretrain.pth"]
    images = published.draw_images(16, 2, 3)
    with torch.no_grad():
        published.assert_same(backbone(images), published.see(model, images))
    assert info.origin["source"] == row.url


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"cls_token": torch.ones(1, 1, 4)}, buffer)
    return buffer.getvalue()


def test_a_file_of_untold_length_is_fetched_too() -> None:
    content = checkpoint()
    with serving(giving(content)) as (address, _):
        assert download(by_url(f"{address}/a.pth")).read_bytes() == content


SERVER_FAILURES: dict[str, tuple[Answer, str]] = {
    "cut": (giving(b"weig", length=7), "connection broke after 4 of 7 bytes"),
    "nothing": (giving(b"", length=7), "connection broke after 0 of 7 bytes"),
    "cut without a length": (giving(checkpoint()[:-100]), "damaged or cut short"),
    "a page": (giving(b"<html>Log in</html>", length=19), "an HTML page instead of the weights"),
    "a message": (giving(b'{"error": "rate limit"}', length=23), "instead of the weights"),
    "an error in XML": (
        giving(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
        "instead of the weights",
    ),
    "forbidden": (refusing(403), "refuses access (403)"),
    "not found": (refusing(404), "has nothing with that name (404)"),
    "too many": (refusing(429, Retry_After="7"), "wait 7 seconds"),
    "in trouble": (refusing(503), "has an internal error (503)"),
    "hanging up": (hanging_up, ""),
}


@pytest.mark.parametrize("kind", SERVER_FAILURES)
def test_a_server_that_fails_leaves_no_file(kind: str, tmp_path: Path) -> None:
    answer, said = SERVER_FAILURES[kind]
    with serving(answer) as (address, _):
        url = f"{address}/some/a.pth"
        with refused(
            url,
            said,
            "featkit export dino_vits16 --weights a.pth --out m.onnx",
            error=EnvironmentProblem,
        ):
            download(by_url(url), quiet=True)
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []
    content = checkpoint()
    with serving(giving(content, length=len(content))) as (address, _):
        assert download(by_url(f"{address}/some/a.pth"), quiet=True).read_bytes() == content


def test_a_server_that_is_not_there_is_told() -> None:
    url = f"{unused_address()}/a.pth"
    with refused(url, "--weights a.pth", error=EnvironmentProblem):
        download(by_url(url), quiet=True)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "torch").write_text("in the way")
    with (
        serving(giving(checkpoint())) as (address, _),
        refused(str(tmp_path), error=EnvironmentProblem),
    ):
        download(by_url(f"{address}/a.pth"), quiet=True)
