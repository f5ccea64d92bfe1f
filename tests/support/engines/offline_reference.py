"""Answers jobs with vLLM's own offline `LLM`, in float32: `MODEL JOBS.json ANSWERS.json`."""

import json
import sys
from itertools import groupby
from pathlib import Path

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest

from loragate.adapters.rendering.renderer import Renderer
from support.engines.questions import ANSWER_TOKENS, Job


def main() -> None:
    model, asked, answered = sys.argv[1:]
    request = json.loads(Path(asked).read_text())
    jobs = [Job(*job) for job in request["jobs"]]
    paths: dict[str, str] = request["paths"]
    ids = {name: number for number, name in enumerate(paths, start=1)}
    renderer = Renderer.load(Path(model))
    llm = LLM(
        model,
        dtype="float32",
        enable_lora=True,
        max_loras=len(paths),
        max_lora_rank=16,
        max_model_len=1024,
        kv_cache_memory_bytes=2**30,
    )
    answers: list[list[int]] = []
    # The base first and alone, while no adapter is loaded: in a mixed batch this version answers
    # for the base with whatever adapter lies in the last slot.
    for is_adapted, its_jobs in groupby(jobs, key=lambda job: job.model in ids):
        batch = list(its_jobs)
        prompts = [
            TokensPrompt(prompt_token_ids=list(renderer.render(job.messages))) for job in batch
        ]
        loras = None
        if is_adapted:
            loras = [LoRARequest(job.model, ids[job.model], paths[job.model]) for job in batch]
        params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS)
        outputs = llm.generate(prompts, params, lora_request=loras)
        answers += [list(output.outputs[0].token_ids) for output in outputs]
    Path(answered).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
