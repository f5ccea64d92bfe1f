"""Whole runs against a real gateway over an engine that echoes, no model."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from loadtests.ports import free_port
from loadtests.records import Run
from support.load_tests.smoke_runs import ROOT, load, run_to_end
from support.waiting import wait_for


def test_steady_traffic_over_both_protocols_is_answered_and_reported(
    steady: Run, steady_folder: Path
) -> None:
    assert {sample.protocol for sample in steady.samples} == {"http", "grpc"}
    assert {sample.outcome for sample in steady.samples} == {"ok"}
    for sample in steady.samples:
        assert sample.served_by == (
            sample.adapter if sample.adapter == "base" else f"{sample.adapter}@v1"
        )
        assert sample.output_tokens in (16, 32)
        assert sample.prompt_tokens > 0
    page = (steady_folder / "report.html").read_text()
    assert "All objectives are met" in page
    assert page.count("data:image/png") == 3
    assert "tenant-0 | adapter-0" in (steady_folder / "report.md").read_text()


@pytest.mark.slow
def test_server_that_cannot_be_stopped_or_does_not_offer_a_mode_is_skipped_with_a_sentence(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    elsewhere = [
        *(sys.executable, "-m", "loadtests", "run", "drain"),
        "--url",
        "http://127.0.0.1:1",
    ]
    skipped = run_to_end(elsewhere)
    assert skipped.returncode == 0
    assert "Skipped: Only a server that the suite starts itself" in skipped.stdout

    merged = run_to_end(load(tiny_model, tiny_adapter, tmp_path, "merged"))
    assert merged.returncode == 0, merged.stderr
    assert "Skipped: The server offers no merged model" in merged.stdout


@pytest.mark.slow
def test_locusts_page_runs_the_same_file(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    port = free_port()
    command = load(tiny_model, tiny_adapter, tmp_path, "steady", "--rate", "8", "--web", str(port))
    # A process group of its own, to which Ctrl-C goes as it does in a terminal.
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, process_group=0
    )
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_for(lambda: _answers(url), 120)
        assert "work_through_plan" in httpx.get(url).text
        started = httpx.post(f"{url}/swarm", data={"scenario": "steady", "duration": "3"})
        assert started.json()["success"], started.text
        assert wait_for(lambda: httpx.get(f"{url}/stats/requests").json()["state"] == "stopped", 60)
        rows = httpx.get(f"{url}/stats/requests").json()["stats"]
        assert {row["method"] for row in rows} >= {"http ttft", "grpc itl", "http goodput"}
        assert {row["name"] for row in rows} >= {"tenant-0/adapter-0"}
    finally:
        os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert (tmp_path / "report.html").is_file()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False
