"""Training speed of the trainer against TRL's SFTTrainer with its defaults, side by side.

    .venv/bin/python bench/train.py

Both get the same base model, the same rows, the same LoRA, batch size, schedule and number of
steps. They take turns, three rounds each, every turn in a process of its own, and the medians are
compared. What counts is tokens that are no padding, by the second of time in steps. A third column
is TRL with what a careful user would set by hand for a CPU (float32, no gradient checkpointing).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples/adapters/acme-support/data.jsonl"
RANK, ALPHA = 16, 32
WARM_UP = 2  # steps that are not counted: allocation, first products
SIDES = ("loragate", "trl", "trl-tuned")


class Pace:
    """Times steps, as a callback of either trainer, and counts what was in them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def turn(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One process's turn: `steps` steps, and the tokens a second in those that count."""
    with tempfile.TemporaryDirectory(prefix="loragate-bench-") as folder:
        steps = arguments.steps + WARM_UP
        return {
            "loragate": train_ours,
            "trl": train_trl,
            "trl-tuned": train_trl_tuned,
        }[side](Path(folder), steps, arguments)


def splits_of(folder: Path) -> Any:
    from loragate.trainer.data.example import Example, read_examples
    from loragate.trainer.data.splits import SplitName, write_split_folder

    examples = tuple(read_examples(DATA))
    parts: dict[SplitName, tuple[Example, ...]] = {
        "train": examples[:-16],
        "validation": examples[-16:-8],
        "test": examples[-8:],
    }
    return write_split_folder(folder / "splits", parts, {})


def train_ours(folder: Path, steps: int, arguments: argparse.Namespace) -> dict[str, float]:
    from rich.progress import Progress

    from loragate.adapters.home import Home
    from loragate.trainer.run.file import convert_run_file
    from loragate.trainer.run.folder import RunFolder
    from loragate.trainer.run.run import Run
    from loragate.trainer.training.plan import make_plan
    from loragate.trainer.training.train import train

    settings = convert_run_file(
        {
            "data": {"splits": "splits"},
            "method": {"rank": RANK, "alpha": float(ALPHA)},
            "training": {
                "max_steps": steps,
                "batch_size": arguments.batch_size,
                "threads": arguments.threads,
                "evaluate_every": steps,
                "log_every": 1,
                "trackers": [],
            },
        }
    )
    run_folder = RunFolder(folder / "run")
    run_folder.root.mkdir()
    run = Run(settings, folder, run_folder, Home.from_environment(), Progress(disable=True))
    train(run, make_plan(run, splits_of(folder)))
    lines = [line for line in run_folder.steps() if "seconds" in line]
    first, last = lines[WARM_UP - 1], lines[-1]
    tokens = last["tokens"] - first["tokens"]
    return {
        "tokens_per_second": tokens / (last["seconds"] - first["seconds"]),
        "loss": last["loss"],
    }


def train_trl(folder: Path, steps: int, arguments: argparse.Namespace) -> dict[str, float]:
    return _train_trl(folder, steps, arguments)


def train_trl_tuned(folder: Path, steps: int, arguments: argparse.Namespace) -> dict[str, float]:
    return _train_trl(folder, steps, arguments, bf16=False, gradient_checkpointing=False)


def _train_trl(
    folder: Path, steps: int, arguments: argparse.Namespace, **choices: Any
) -> dict[str, float]:
    """As TRL's documentation has it: prompts and completions, and a LoRA configuration."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from loragate.adapters.base_models.preparation import DEFAULT_MODEL, find
    from loragate.adapters.home import Home
    from loragate.trainer.settings import PROJECTIONS

    torch.set_num_threads(arguments.threads)
    base = str(find(DEFAULT_MODEL, Home.from_environment().models).path)
    pace = Pace()

    class Timer(TrainerCallback):
        def on_step_begin(self, *_arguments: Any, **_fields: Any) -> None:
            pace.begin()

        def on_step_end(self, *_arguments: Any, **_fields: Any) -> None:
            pace.end()

    class Counting(SFTTrainer):
        """Notes the tokens of each step that are no padding."""

        counted: list[int]

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **fields: Any) -> Any:
            self.counted.append(int(inputs["attention_mask"].sum()))
            return super().compute_loss(model, inputs, *rest, **fields)

    rows = [
        {"prompt": list(example.turns()[:-1]), "completion": list(example.turns()[-1:])}
        for example in splits_of(folder).splits["train"]
    ]
    trainer = Counting(
        model=base,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=2e-4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            **choices,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
        ),
        callbacks=[Timer()],
    )
    trainer.counted = []
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(trainer.counted[WARM_UP:])
    return {
        "tokens_per_second": tokens / sum(pace.seconds[WARM_UP:]),
        "loss": losses[-1] if losses else float("nan"),
    }


def compare(arguments: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {side: [] for side in arguments.sides}
    for number in range(1, arguments.rounds + 1):
        for side in arguments.sides:
            found = _in_own_process(side, arguments)
            rates[side].append(found["tokens_per_second"])
            notes = ", ".join(f"{k} {v}" for k, v in found.items() if k != "tokens_per_second")
            print(
                f"round {number}  {side:10}  {found['tokens_per_second']:7.1f} tokens/s  ({notes})",
                flush=True,
            )
    medians = {side: statistics.median(found) for side, found in rates.items()}
    print()
    plain = medians.get("trl")
    for side, median in medians.items():
        times = f"  x {median / plain:.2f}" if plain else ""
        print(f"{side:10}  median {median:7.1f} tokens/s{times}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rates, "medians": medians}, indent=2) + "\n")


def _in_own_process(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        f"--turn={side}",
        f"--steps={arguments.steps}",
        f"--batch-size={arguments.batch_size}",
        f"--threads={arguments.threads}",
    ]
    ended = subprocess.run(command, capture_output=True, check=False)
    if ended.returncode:
        sys.exit(f"{side} failed:\n{ended.stderr.decode()[-3000:]}")
    return json.loads(ended.stdout.decode().strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="measured a turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--turn", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        print(json.dumps(turn(arguments.turn, arguments)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
