"""What vLLM's own offline `LLM` answers in float32, greedily: `MODEL ASKED.json ANSWERED.json`.

ASKED has `tokens`, how many an answer has, `prompts`, lists of token ids, and `adapters`, folders.
The answers are lists of token ids, by adapter and prompt.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Answers = dict[str, list[list[int]]]


async def answer_offline(
    work: Path, model: Path, adapters: Mapping[str, Path], prompts: Sequence[list[int]], tokens: int
) -> Answers:
    """Runs this module in a process of its own, which takes a minute. `work` is a folder to use."""
    asked, answered = work / "asked.json", work / "answered.json"
    folders = {name: str(folder) for name, folder in adapters.items()}
    asked.write_text(json.dumps({"tokens": tokens, "prompts": prompts, "adapters": folders}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.offline", str(model), str(asked), str(answered)),
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the offline reference failed:\n{errors.decode()[-3000:]}")
    answers: Answers = json.loads(answered.read_text())
    return answers


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    model, asked, answered = sys.argv[1:]
    wanted = json.loads(Path(asked).read_text())
    llm = LLM(
        model,
        dtype="float32",
        enable_lora=True,
        max_loras=len(wanted["adapters"]),
        max_lora_rank=16,
        max_model_len=1024,
        kv_cache_memory_bytes=2**30,
    )
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in wanted["prompts"]]
    params = SamplingParams(temperature=0, max_tokens=wanted["tokens"], ignore_eos=True)
    answers: Answers = {}
    for number, (name, folder) in enumerate(wanted["adapters"].items(), start=1):
        lora = LoRARequest(name, number, folder)
        outputs = llm.generate(prompts, params, lora_request=lora, use_tqdm=False)
        answers[name] = [list(output.outputs[0].token_ids) for output in outputs]
    Path(answered).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
