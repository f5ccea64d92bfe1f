"""Every setting of a run's own tables changes the run: none is accepted and then read by nobody."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file

from loragate.adapters.base_models.preparation import prepare
from loragate.trainer.errors import TrainingError
from loragate.trainer.pipeline.pipeline import ready_data
from loragate.trainer.run.file import RunFile
from loragate.trainer.training.adapter_trainer import training_arguments
from loragate.trainer.training.models import lora_config, quantization_config
from loragate.trainer.training.plan import longest_row
from support.training.tiny_runs import TEMPLATE, TinyRuns, loaded, write_model, write_splits

OWN_TABLES = ("data", "model", "method", "training")
QLORA: dict[str, dict[str, object]] = {"method": {"name": "qlora"}}

# Another value for each, and what else has to be set for it to matter.
CHANGES: dict[str, tuple[object, dict[str, dict[str, object]]]] = {
    "data.format": ("prompt", {}),
    "data.bad_rows": ("drop", {}),
    "data.label_field": ("class", {}),
    "data.group_field": ("customer", {}),
    "data.fields": ({"completion": "answer"}, {}),
    "data.preferences": ("chosen", {}),
    "data.language": ("en", {}),
    "data.personal_data": ("keep", {}),
    "data.near_duplicates": ("keep", {}),
    "data.conflicts": ("keep", {}),
    "data.personal_data_allowed": (["@firm.example"], {}),
    "data.phone_regions": (["IT"], {}),
    "data.mend": (["unicode"], {}),
    "data.similarity": (0.9, {}),
    "data.validation_share": (0.2, {}),
    "data.test_share": (0.2, {}),
    "data.system_prompt": ("Be short.", {}),
    "data.max_tokens": (70, {"data": {"too_long": "drop"}}),
    "data.replay_share": (0.5, {"data": {"replay": "old"}}),
    "model.chat_template": ("template.jinja", {}),
    "model.chat_template_kwargs": ({"tone": "dry"}, {"model": {"chat_template": "tone.jinja"}}),
    "method.name": ("rslora", {}),
    "method.rank": (16, {}),
    "method.alpha": (3.0, {}),
    "method.dropout": (0.2, {}),
    "method.target_modules": (["q_proj"], {}),
    "method.quantization": ("int8", QLORA),
    "method.double_quantization": (False, QLORA),
    "training.epochs": (5.0, {"training": {"max_steps": 0}}),
    "training.max_steps": (7, {}),
    "training.batch_size": (2, {}),
    "training.gradient_accumulation": (2, {}),
    "training.learning_rate": (1e-3, {}),
    "training.schedule": ("linear", {}),
    "training.warmup_share": (0.5, {}),
    "training.weight_decay": (0.1, {}),
    "training.max_gradient_norm": (0.5, {}),
    "training.evaluate_every": (3, {}),
    "training.save_every": (3, {}),
    "training.log_every": (3, {}),
    "training.precision": ("bf16", {}),
    "training.rows_share": (0.5, {}),
    "training.group_by_length": (False, {}),
    "training.gradient_checkpointing": (True, {}),
    "training.trackers": (["mlflow"], {}),
}
# Not seen in what the libraries are given; each has a test of its own.
ELSEWHERE = {
    "data.raw": "test_raw_files_are_cleaned_and_split_once",
    "data.splits": "test_a_run_reads_the_splits_that_it_names",
    "data.validation": "test_rows_of_own_files_are_validated_and_tested",
    "data.test": "test_rows_of_own_files_are_validated_and_tested",
    "data.test_set": "test_a_test_set_by_name_stays_over_runs_that_have_more_rows",
    "data.too_long": "test_rows_that_are_too_long_are_left_out_whole_and_counted",
    "data.replay": "test_old_rows_are_mixed_in_by_their_share",
    "model.base": "test_a_run_starts_from_the_base_model_that_it_names",
    "model.continue_from": "test_training_goes_on_from_a_published_version",
    "method.adapter_dtype": "test_an_adapter_is_saved_in_the_numbers_that_were_asked_for",
    "training.patience": "test_a_run_that_overfits_stops_and_keeps_the_weights_of_its_minimum",
    "training.threads": "test_a_run_computes_in_as_many_threads_as_it_says",
    "training.device": "test_a_device_that_is_not_there_is_refused",
}


def given_to_libraries(runs: TinyRuns, run: RunFile) -> dict[str, Any]:
    """All that the settings come to in the end."""
    plan = runs.plan(run)
    resolved = plan.settings
    arguments = training_arguments(resolved, plan.schedule, Path("out")).to_dict()
    quantization = quantization_config(resolved.method)
    return {
        "arguments": arguments,
        "lora": lora_config(resolved.method).to_dict(),
        "quantization": quantization.to_dict() if quantization else None,
        "order": plan.schedule.order,
        "rows": plan.training.rows,
        "data": run.data.preparation(
            seed=run.seed, max_tokens=longest_row(resolved.data, plan.config)
        ),
    }


def changed(runs: TinyRuns, setting: str, value: object) -> tuple[RunFile, RunFile]:
    table, _, key = setting.partition(".")
    extra = CHANGES[setting][1]
    before = runs.run_file(**extra)
    after = runs.run_file(**{**extra, table: {**extra.get(table, {}), key: value}})
    return before, after


@pytest.mark.parametrize("setting", CHANGES)
def test_a_changed_setting_reaches_what_does_the_work(runs: TinyRuns, setting: str) -> None:
    write_splits(runs.root / "old", seed=5)
    (runs.root / "template.jinja").write_text(TEMPLATE.replace("<|turn|>", "<|turn|> "))
    (runs.root / "tone.jinja").write_text("{{ tone }}" + TEMPLATE)
    before, after = changed(runs, setting, CHANGES[setting][0])
    assert given_to_libraries(runs, before) != given_to_libraries(runs, after)


def test_the_seed_changes_the_order_of_rows_and_the_numbers_drawn(runs: TinyRuns) -> None:
    run = runs.run_file()
    other = msgspec.structs.replace(run, seed=1)
    one, two = given_to_libraries(runs, run), given_to_libraries(runs, other)
    assert one["order"] != two["order"]
    assert one["arguments"]["seed"] != two["arguments"]["seed"]
    assert one["data"].splitting.seed != two["data"].splitting.seed


def test_no_setting_is_forgotten_here() -> None:
    defaults = msgspec.to_builtins(msgspec.convert({"data": {"splits": "x"}}, RunFile))
    settings = {f"{table}.{key}" for table in OWN_TABLES for key in defaults[table]}
    assert settings == CHANGES.keys() | ELSEWHERE.keys()
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [test for test in ELSEWHERE.values() if f"def {test}(" not in text] == []


def test_what_was_resolved_can_be_trained_again_as_it_is(runs: TinyRuns) -> None:
    resolved = runs.plan(runs.run_file(training={"precision": "auto"})).settings
    decided = msgspec.structs.replace(resolved.data, format="messages")
    assert '"auto"' not in msgspec.structs.replace(resolved, data=decided).to_toml()
    assert runs.plan(resolved).settings == resolved


def test_a_run_reads_the_splits_that_it_names(runs: TinyRuns) -> None:
    other = write_splits(runs.root / "other", seed=9)
    run = runs.run_file(data={"splits": "other"})
    run = loaded(runs, run)
    assert ready_data(run).digest == other.digest


def test_a_run_starts_from_the_base_model_that_it_names(runs: TinyRuns) -> None:
    wide = write_model(runs.root / "wide", width=128)
    with Progress(disable=True) as progress:
        prepare(str(wide), runs.home.models, progress)
    _, result = runs.train(runs.run_file(model={"base": str(wide)}, training={"max_steps": 1}))
    assert result.base_model == "wide"


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_an_adapter_is_saved_in_the_numbers_that_were_asked_for(
    runs: TinyRuns, name: str, dtype: torch.dtype
) -> None:
    folder, _ = runs.train(runs.run_file(method={"adapter_dtype": name}, training={"max_steps": 1}))
    tensors = load_file(folder.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_computes_in_as_many_threads_as_it_says(runs: TinyRuns, threads: int) -> None:
    runs.train(runs.run_file(training={"max_steps": 1, "threads": threads}))
    assert torch.get_num_threads() == threads


def test_a_device_that_is_not_there_is_refused(runs: TinyRuns) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrainingError, match="no CUDA device"):
        runs.plan(runs.run_file(training={"device": "cuda"}))
