"""Writes the results of a training: weights, diagnosis of the fit, loss curve, provenance."""

import hashlib
import io
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.base_profile import tokenizer_hash
from loragate.adapters.rendering.supervision import read_end_ids
from loragate.trainer.run.file import template_of
from loragate.trainer.run.folder import FitDiagnosis, RunResult, write_whole
from loragate.trainer.run.run import Run
from loragate.trainer.settings import MethodSettings
from loragate.trainer.training import machine
from loragate.trainer.training.checkpoints import Checkpoints, RunState, Validation
from loragate.trainer.training.plan import TrainingPlan
from loragate.trainer.training.schedule import padding_share

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PACKAGES = (
    "loragate",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
)
# Loss, as a share of the minimum: below this, two validations are equal for a reader.
_NOTABLE = 0.01


def export(
    run: Run, plan: TrainingPlan, checkpoints: Checkpoints, run_state: RunState, steps: int
) -> None:
    """Writes the best weights, the curve and the result into the run's folder, and removes the
    checkpoints. `steps` is the number of steps taken. Raises RunFolderError.

    The result is written last: a folder that has one is complete.
    """
    folder, method = run.folder, plan.settings.method
    best = checkpoints.best(run_state.best.step)
    with checkpoints.explaining():
        if method.name == "full":
            write_model(
                best,
                folder.adapter,
                plan.base,
                chat_template=template_of(plan.settings, folder.root),
                stops=plan.training.ends - plan.renderer.ends.ids,
            )
        else:
            write_adapter(best, folder.adapter, method, plan.base)
    diagnosis = diagnose_fit(run_state.validations, steps)
    log = list(folder.steps())
    write_whole(folder.curve, draw_curve(log, diagnosis))
    folder.write_result(
        _result(
            plan,
            run_state,
            diagnosis,
            steps=steps,
            adapter_digest=weights_digest(folder.adapter),
            metrics=_metrics(plan, run_state, log, steps),
        )
    )
    checkpoints.clear()


def write_adapter(best: Path, target: Path, method: MethodSettings, base: BaseModel) -> None:
    """Writes an adapter in PEFT's form; equal weights give equal bytes.

    The configuration names the base model, not a path of this machine.
    """
    partial = _empty(target)
    dtype = torch.float32 if method.adapter_dtype == "float32" else torch.bfloat16
    tensors = load_file(best / _WEIGHTS)
    save_file(
        {name: tensors[name].to(dtype).contiguous() for name in sorted(tensors)},
        partial / _WEIGHTS,
        metadata={"format": "pt"},
    )
    config = cast(dict[str, object], json.loads((best / _CONFIG).read_text()))
    config["base_model_name_or_path"] = base.name
    config["inference_mode"] = True
    targets = cast("list[str] | str", config["target_modules"])
    config["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    (partial / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _swap_in(partial, target)


def write_model(
    best: Path,
    target: Path,
    base: BaseModel,
    *,
    chat_template: str | None = None,
    stops: Collection[int] = (),
) -> None:
    """Writes a whole model, with the base's tokenizer, and its chat template where no other is
    given. `stops` are tokens that end answers beside those of the base: it has no contract.
    """
    partial = _empty(target)
    shutil.copytree(best, partial, dirs_exist_ok=True)
    for file in base.path.iterdir():
        is_text = file.suffix in (".json", ".jinja", ".model", ".txt")
        if is_text and file.name != "loragate-model.json" and not (partial / file.name).exists():
            shutil.copy2(file, partial)
    if chat_template is not None:
        (partial / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if stops:
        file = partial / "generation_config.json"
        settings = json.loads(file.read_bytes()) if file.is_file() else {}
        settings["eos_token_id"] = sorted({*read_end_ids(partial), *stops})
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _swap_in(partial, target)


def _empty(target: Path) -> Path:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _swap_in(partial: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def diagnose_fit(validations: Sequence[Validation], last_step: int) -> FitDiagnosis:
    """Diagnoses the fit by the validation losses. The first of `validations` is of step 0, before
    training.
    """
    first, last = validations[0], validations[-1]
    best = min(validations, key=lambda validation: validation.loss)
    common = {
        "best_step": best.step,
        "best_validation_loss": best.loss,
        "first_validation_loss": first.loss,
        "last_validation_loss": last.loss,
    }
    fell = f"The validation loss fell from {first.loss:.3f} to {best.loss:.3f}"
    if best.step == 0:
        return FitDiagnosis(
            fit="unknown",
            sentence=(
                f"Nothing was learnt that holds on unseen rows: the validation loss was lowest "
                f"({first.loss:.3f}) before training. Lower the learning rate, or look at the data."
            ),
            **common,
        )
    if last.loss > best.loss * (1 + _NOTABLE):
        return FitDiagnosis(
            fit="overfitted",
            sentence=(
                f"{fell} at step {best.step} and then rose to {last.loss:.3f} by step {last_step}: "
                f"overfitted from there on. The weights of step {best.step} were kept."
            ),
            **common,
        )
    if _still_falling(validations):
        return FitDiagnosis(
            fit="underfitted",
            sentence=(
                f"{fell} at step {best.step} of {last_step} and was still falling: underfitted. "
                "More epochs or a higher learning rate would lower it further."
            ),
            **common,
        )
    return FitDiagnosis(
        fit="well fitted",
        sentence=(
            f"{fell} at step {best.step} of {last_step} and has levelled out there: well fitted."
        ),
        **common,
    )


def _still_falling(validations: Sequence[Validation]) -> bool:
    """Whether the loss fell by more than 2 % over the last fifth of the steps."""
    last = validations[-1]
    earlier = [one for one in validations if one.step <= 0.8 * last.step]
    lowest_before = min(one.loss for one in earlier)
    return lowest_before - last.loss > 2 * _NOTABLE * last.loss


def draw_curve(lines: Sequence[Mapping[str, float]], diagnosis: FitDiagnosis) -> bytes:
    """A PNG of the log's lines: training and validation loss, and where the minimum was.

    A line has `step` and, in nats a token, `loss` or `validation_loss`.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, label, width, marker in (
        ("loss", "training", 1.0, ""),
        ("validation_loss", "validation", 2.0, "o"),
    ):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=width, marker=marker)
    axes.axvline(diagnosis.best_step, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        f"minimum {diagnosis.best_validation_loss:.3f} at step {diagnosis.best_step}",
        (diagnosis.best_step, diagnosis.best_validation_loss),
        xytext=(6, 14),
        textcoords="offset points",
        fontsize=9,
        ha="right" if diagnosis.best_step else "left",
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.set_title(diagnosis.fit, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change the result."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def weights_digest(folder: Path) -> str:
    """`sha256:<hex>` over the folder's safetensors files, by name."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def _result(
    plan: TrainingPlan,
    run_state: RunState,
    diagnosis: FitDiagnosis,
    *,
    steps: int,
    adapter_digest: str,
    metrics: dict[str, float],
) -> RunResult:
    settings, schedule = plan.settings, plan.schedule
    return RunResult(
        method=settings.method.name,
        diagnosis=diagnosis,
        metrics=metrics,
        steps=steps,
        epochs=schedule.epochs(steps),
        seconds=run_state.seconds,
        training_seconds=run_state.training_seconds,
        training_tokens=schedule.tokens[steps],
        supervised_tokens=schedule.supervised[steps],
        peak_memory_bytes=machine.peak_memory_bytes(settings.training.device),
        seed=settings.seed,
        data_digest=plan.data_digest,
        base_model=plan.base.name,
        base_model_digest=plan.base.digest,
        adapter_digest=adapter_digest,
        continued_from=str(plan.parent.version) if plan.parent else "",
        chat_template_hash=plan.renderer.template_hash(),
        tokenizer_hash=tokenizer_hash(plan.base.path),
        stop_token_ids=tuple(sorted(plan.training.ends - plan.renderer.ends.ids)),
        packages=package_versions(),
        machine=machine.describe(),
    )


def _metrics(
    plan: TrainingPlan, run_state: RunState, log: Sequence[Mapping[str, float]], steps: int
) -> dict[str, float]:
    """The figures of the result by name. Losses are in nats a supervised token."""
    schedule, seconds = plan.schedule, run_state.training_seconds
    losses = [line["loss"] for line in log if "loss" in line]
    # A run that was stopped early may have reported none; JSON has no word for that.
    training_loss = {"training_loss": losses[-1]} if losses else {}
    lengths = [len(row.ids) for row in plan.training.rows]
    return {
        "validation_loss": run_state.best.loss,
        **training_loss,
        "tokens_per_second": schedule.tokens[steps] / seconds if seconds else 0.0,
        "padding_share": padding_share(schedule.order, lengths, schedule.batch_size),
        "training_rows": len(plan.training.rows),
        "validation_rows": len(plan.validation.rows),
        "replayed_rows": plan.replayed,
        "too_long_rows": plan.training.too_long + plan.validation.too_long,
    }
