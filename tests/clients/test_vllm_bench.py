"""vLLM's own benchmark client, of the vLLM that is installed: no request of its fails."""

import json
import os
import subprocess
import sys

import pytest

# As its command line does, which asks for a package named `vllm` and so not on CPU.
BENCH_SERVE = (
    "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


@pytest.mark.parametrize(
    ("backend", "endpoint", "model"),
    [
        ("openai", "/v1/completions", ("--model", "support")),
        ("openai-chat", "/v1/chat/completions", ("--model", "support")),
        # Each request asks for one of these.
        ("openai", "/v1/completions", ("--model", "base", "--lora-modules", "support", "base")),
        # It asks /v1/models for the first, and sends that the key of a header alone.
        ("openai-chat", "/v1/chat/completions", ()),
    ],
)
def test_no_request_of_bench_serve_fails(target, tmp_path, backend, endpoint, model):
    options = ["--backend", backend, "--base-url", target.http, "--endpoint", endpoint, *model]
    options += ["--tokenizer", target.tokenizer, "--dataset-name", "random"]
    options += ["--random-input-len", "32", "--random-output-len", "8", "--num-prompts", "16"]
    options += ["--max-concurrency", "4", "--request-rate", "inf", "--ignore-eos"]
    options += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--disable-tqdm"]
    options += [] if model else ["--header", f"Authorization=Bearer {target.key}"]
    options += ["--save-result", "--save-detailed", "--result-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", BENCH_SERVE, *options, "--result-filename", "result.json"],
        env=os.environ | {"OPENAI_API_KEY": target.key, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (16, 0), result["errors"]
    assert not any(result["errors"])
    assert result["total_output_tokens"] > 0
    assert result["mean_ttft_ms"] > 0
