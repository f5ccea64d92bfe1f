"""Model cards (README.md) of adapters and merged models, in the form that hubs and PEFT read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from huggingface_hub import EvalResult, ModelCardData

from loragate.adapters.names import AdapterVersion
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.publishing.merging import MergeReport
from loragate.trainer.run.file import RunFile
from loragate.trainer.run.folder import RunResult

_LOAD_MERGED: Final = (
    "from transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("FOLDER")'
)


def model_card(run: RunFile, result: RunResult, evaluation: Evaluation | None) -> str:
    """The card of an adapter: metadata as YAML, then its use, its quality and its making. Nothing
    in it depends on the machine's paths.
    """
    data = ModelCardData(
        base_model=result.base_model,
        library_name="peft",
        pipeline_tag="text-generation",
        license=run.publish.license or None,
        model_name=run.publish.adapter or "adapter",
        tags=["loragate", "lora", "transformers"],
        eval_results=list(_eval_results(evaluation)) or None,
    )
    sections = (
        f"# {run.publish.adapter or 'An adapter'}",
        run.publish.description or f"A {result.method} fine-tuning of {result.base_model}.",
        "## How to use",
        _usage(run, result),
        "## How well it does",
        _quality(evaluation),
        "## How it was made",
        _making(run, result),
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def merged_card(version: AdapterVersion, base_model: str, report: MergeReport) -> str:
    """The card of a merged model: its parts, and the figures of the check."""
    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["loragate", "merged"],
    )
    proof = report.sentence[0].upper() + report.sentence[1:]
    if report.quantized is not None:
        proof += f"\n\n{report.quantized.sentence}"
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {version}, merged\n\n{base_model} with the adapter "
        f"{version} in its weights. transformers and vLLM load this folder alone:\n\n"
        f"```python\n{_LOAD_MERGED}\n```\n\n## Proof\n\n{proof}\n"
    )


def _eval_results(evaluation: Evaluation | None) -> Iterator[EvalResult]:
    if evaluation is None:
        return
    for name, value in evaluation.new.metrics.items():
        yield EvalResult(
            task_type="text-generation",
            dataset_type="own",
            dataset_name="unseen test split",
            dataset_args={"digest": evaluation.about.data_digest},
            metric_type=name,
            metric_name=evaluation.metric(name).title,
            metric_value=round(value.estimate, 4),
        )


def _usage(run: RunFile, result: RunResult) -> str:
    base = result.base_model
    prompt = f"\n\nIt was trained with the system prompt:\n\n> {run.data.system_prompt}"
    return (
        f"Served by loragate as `{run.publish.adapter or 'TENANT/ADAPTER'}`, or with PEFT:\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")\n```'
        + (prompt if run.data.system_prompt else "")
    )


def _quality(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "It was not evaluated."
    titles = [system.title for system in evaluation.systems]
    lines = [
        evaluation.requirements.sentence,
        "",
        f"On {evaluation.about.rows} rows that it was not trained on, with "
        f"{100 * evaluation.about.confidence:g} % intervals:",
        "",
        f"| | {' | '.join(titles)} |",
        f"|---|{'---|' * len(titles)}",
    ]
    for name in evaluation.new.metrics:
        metric = evaluation.metric(name)
        cells = [
            f"{metric.show(value.estimate)} ({metric.show(value.low)} to {metric.show(value.high)})"
            if value is not None
            else ""
            for value in (system.metrics.get(name) for system in evaluation.systems)
        ]
        lines.append(f"| {metric.title} | {' | '.join(cells)} |")
    if evaluation.labels is None:
        lines += ["", f"BLEU: `{evaluation.about.bleu_signature}`"]
    return "\n".join(lines)


def _making(run: RunFile, result: RunResult) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in sorted(result.packages.items()))
    facts = {
        "Method": result.method,
        "Rank, alpha": f"{run.method.rank}, {run.method.alpha}",
        "Learning rate": run.training.learning_rate,
        "Steps": f"{result.steps} ({result.epochs:.2f} epochs, {result.training_tokens} tokens)",
        "Validation loss": result.diagnosis.sentence,
        "Seed": result.seed,
        "Goes on from": result.continued_from or "the base model",
        "Base model digest": f"`{result.base_model_digest}`",
        "Data digest": f"`{result.data_digest}`",
        "Machine": result.machine,
        "Packages": packages,
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
