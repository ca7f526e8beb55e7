"""`featkit demo` as a process: it opens, answers, stops on Ctrl-C, and explains its refusals."""

from __future__ import annotations

import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from featkit.cli.app import main
from featkit.serve.running import bind
from tests.commands import end, start_featkit
from tests.demo.conftest import Gallery


def test_demo_opens_answers_and_stops_on_ctrl_c(gallery: Gallery, tmp_path: Path) -> None:
    command = ["demo", gallery.images, "--model", gallery.model, "--port", 0, "--no-browser"]
    process = start_featkit(*command, "--cache", tmp_path / "cache")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(
            r"Search 13 images at (http://127\.0\.0\.1:\d+) \(stop with Ctrl-C\)", line
        )
        assert found is not None, line
        with urllib.request.urlopen(f"{found[1]}/v1/sample?limit=1") as answer:
            assert answer.status == 200
        with pytest.raises(
            urllib.error.HTTPError, match="400"
        ):  # a foreign domain that resolves to 127.0.0.1
            urllib.request.urlopen(
                urllib.request.Request(f"{found[1]}/v1/sample", headers={"Host": "evil.example"})
            )
        with urllib.request.urlopen(found[1]) as answer:
            text = answer.read().decode()
        assert "page/page.css" in text
        process.send_signal(signal.SIGINT)
        ended = end(process)
    finally:
        process.kill()
    assert ended.code == 0
    assert "Traceback" not in ended.error


def test_a_taken_port_is_reported_at_once(
    gallery: Gallery, capsys: pytest.CaptureFixture[str]
) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert main(["demo", str(gallery.index), "--port", str(port)]) == 3
    problem = capsys.readouterr().err
    assert re.fullmatch(
        rf"featkit: Port {port} is taken by another program; the next free one is \d+: add --port"
        r" \d+\.\n",
        problem,
    )


def test_a_refusal_is_one_sentence(
    gallery: Gallery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--port", "0", "--model", str(gallery.model), "--cache", str(tmp_path / "cache")]
    assert main(["demo", str(tmp_path / "missing"), *arguments]) == 2
    assert main(["demo", str(gallery.index), *arguments]) == 2
    assert main(["demo", str(gallery.index), "--port", "0", "--column", "photo"]) == 2
    assert main(["serve", "--port", "0"]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 4
    assert "missing" in problems[0]
    assert "searches with its own model" in problems[1]
    assert "leave --exclude, --include, --follow-links and --column out." in problems[2]
    assert "Nothing to serve" in problems[3]


def test_a_missing_extra_is_reported_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "featkit.extras.find_spec",
        lambda name: None if name in ("gradio", "fastapi") else object(),
    )
    assert main(["demo"]) == 3
    assert main(["serve"]) == 3
    demo, serve = capsys.readouterr().err.splitlines()
    assert "pip install 'featkit[demo]'" in demo
    assert "pip install 'featkit[serve]'" in serve
