"""lm-eval over chats and over completions, with a task of six questions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = [
    {"question": f"{a} plus {b}", "answer": str(a + b), "choices": ["cat", str(a + b)]}
    for a, b in ((1, 2), (2, 2), (3, 4), (5, 1), (2, 6), (4, 4))
]


@pytest.fixture
def tasks(tmp_path):
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{question}}}} is"
"""
    (tmp_path / "generated.yaml").write_text(
        common
        + """
task: generated
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16, temperature: 0}
metric_list: [{metric: exact_match}]
"""
    )
    (tmp_path / "chosen.yaml").write_text(
        common
        + """
task: chosen
output_type: multiple_choice
doc_to_target: 1
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""
    )
    return tmp_path


def evaluate(target, tasks, model, task, *arguments):
    out = tasks / "out"
    said = [f"model={target.model}", "num_concurrent=4", "max_retries=1"]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", task]
    command += ["--include_path", str(tasks), "--output_path", str(out), "--log_samples"]
    command += ["--model_args", ",".join([*said, *arguments[0]]), *arguments[1:]]
    environment = {
        "OPENAI_API_KEY": target.key,
        "HF_HOME": str(tasks / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = Path(out).rglob("results_*.json")
    [samples] = Path(out).rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"][task], rows


def test_chats(target, tasks):
    url = f"base_url={target.base_url}/chat/completions"
    _, rows = evaluate(
        target, tasks, "local-chat-completions", "generated", [url], "--apply_chat_template"
    )
    # At most as many tokens as were asked for, and a token here is a byte.
    said = [row["resps"][0][0] for row in rows]
    assert said == [f"You said: {doc['question']}"[:16] for doc in DOCS]


def test_completions(target, tasks):
    arguments = [f"base_url={target.base_url}/completions", f"tokenizer={target.tokenizer}"]
    _, rows = evaluate(target, tasks, "local-completions", "generated", arguments)
    assert rows[0]["resps"][0][0] == "You said: 1 plus"


def test_choices_are_scored_by_the_log_probabilities_of_the_prompt(target, tasks):
    arguments = [f"base_url={target.base_url}/completions", f"tokenizer={target.tokenizer}"]
    results, rows = evaluate(target, tasks, "local-completions", "chosen", arguments)
    # The engine finds each token as likely as any, and so the shorter text likelier.
    assert len(rows) == len(DOCS)
    assert results["acc,none"] == 1.0
