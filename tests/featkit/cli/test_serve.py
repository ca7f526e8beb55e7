"""The command `featkit serve`: who may call what it serves."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.commands import REPOSITORY, is_one_sentence, run_featkit
from tests.model_files import make_model_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@contextmanager
def served(model: Path, *arguments: object) -> Iterator[tuple[str, list[str]]]:
    """Run `featkit serve` and yield its address and the lines that it prints first."""
    command = [sys.executable, "-u", "-m", "featkit", "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        try:
            assert process.stdout is not None
            num_lines = 2 if "--keys" in arguments else 1
            lines = [process.stdout.readline() for _ in range(num_lines)]
            address = re.search(r"http://127\.0\.0\.1:\d+", lines[0])
            assert address is not None, lines
            yield address[0], lines
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "Other machines reach 0.0.0.0, and without keys everybody may use"),
        (("--host", "0.0.0.0", "--keys", "none.json"), "none.json does not exist; create a key"),
        (("--keys", "none.json"), "none.json does not exist; create a key"),
        (("--keys", "k.json", "--without-keys"), "--keys and --without-keys exclude each other"),
        (("--open-metrics",), "--open-metrics needs --keys"),
        (("--root-path", "photos"), "--root-path is 'photos'"),
        (("--root-path", "/v1"), "the service's own routes begin with /v1"),
        (("--forwarded-allow-ips", "10.0.0.0/8, x"), "--forwarded-allow-ips has 'x'"),
        (("--allow-host", "http://a"), "--allow-host is 'http://a'"),
    ],
)
def test_it_does_not_start_open_or_misconfigured(
    model: Path, arguments: tuple[str, ...], words: str
) -> None:
    said = run_featkit("serve", "--model", model, "--port", 0, *arguments)
    assert (said.code, is_one_sentence(said), words in said.error) == (2, True, True), said


def test_a_damaged_file_of_keys_is_refused_at_start(model: Path, file: Path) -> None:
    file.write_text("{}", encoding="utf-8")
    said = run_featkit("serve", "--model", model, "--port", 0, "--keys", file)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "is not a valid file of API keys" in said.error


def test_a_running_service_follows_its_keys(model: Path, file: Path) -> None:
    kept = run_featkit("keys", "create", "kept", "--keys", file).out.strip()
    with served(model, "--host", "0.0.0.0", "--keys", file) as (address, lines):
        assert lines[1] == f"Requests need a key: {file} has 1 valid key\n"

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return httpx.get(f"{address}/openapi.json", headers=headers).status_code

        added = run_featkit("keys", "create", "added", "--keys", file).out.strip()
        assert [status(token) for token in (kept, added, "other")] == [200, 200, 401]
        run_featkit("keys", "revoke", "kept", "--keys", file)
        assert [status(token) for token in (kept, added)] == [401, 200]
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/healthz").status_code == 200
        file.unlink()
        assert [status(token) for token in (kept, added)] == [503, 503]
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_a_service_without_a_valid_key_says_so(model: Path, file: Path) -> None:
    run_featkit("keys", "create", "web", "--keys", file)
    run_featkit("keys", "revoke", "web", "--keys", file)
    with served(model, "--keys", file, "--open-metrics") as (address, lines):
        assert "has no valid key, so every request is refused" in lines[1]
        assert httpx.get(f"{address}/metrics").status_code == 200
        assert httpx.get(f"{address}/openapi.json").status_code == 401


def test_everybody_is_answered_by_request_only(model: Path) -> None:
    with served(model, "--host", "0.0.0.0", "--without-keys") as (address, _):
        assert httpx.get(f"{address}/openapi.json").status_code == 200


def test_options_for_a_proxy_reach_the_service(model: Path) -> None:
    options = ("--allow-host", "photos.example", "--root-path", "/photos/")
    with served(model, *options, "--forwarded-allow-ips", "127.0.0.1, 10.0.0.0/8") as (address, _):
        named = {"Host": "photos.example"}
        spec = httpx.get(f"{address}/photos/openapi.json", headers=named).json()
        assert spec["servers"] == [{"url": "/photos"}]
        assert httpx.get(f"{address}/healthz", headers={"Host": "evil.example"}).status_code == 400
