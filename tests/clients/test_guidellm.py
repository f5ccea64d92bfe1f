"""GuideLLM: a short benchmark of each endpoint, in which no request fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("request_format", ["/v1/chat/completions", "/v1/completions"])
def test_no_request_of_a_benchmark_fails(target, tmp_path, request_format):
    said = {
        "backend": f"kind=openai_http,target={target.http},model={target.model},"
        f"api_key={target.key},request_format={request_format}",
        "profile": "kind=concurrent,streams=4",
        "constraint": "kind=max_requests,count=24",
        "tokenizer": f"kind=hf_auto,model={target.tokenizer}",
        "data": "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        "output": f"kind=json,path={tmp_path / 'benchmark.json'}",
    }
    options = [part for name, value in said.items() for part in (f"--{name}", value)]
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    program = Path(sys.executable).with_name("guidellm")
    done = subprocess.run(
        [program, "run", "--disable-console-interactive", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    [benchmark] = json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (24, 0)
