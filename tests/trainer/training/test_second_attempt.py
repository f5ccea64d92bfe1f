"""A run that is begun again uses what its files say now, or says what differs."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from loragate.adapters.errors import InvalidName, LoragateError, TenantNotFound
from loragate.adapters.names import AdapterVersion
from loragate.trainer.cli import train as cli_train
from loragate.trainer.data.example import DataError, Example, Message, write_examples
from loragate.trainer.errors import RunFileError, RunFolderError, TrainingError
from loragate.trainer.evaluation.requirements import InvalidRequirement
from loragate.trainer.pipeline.attempt import begin_estimate
from loragate.trainer.pipeline.checks import RunUnsound, require_sound
from loragate.trainer.pipeline.pipeline import check, plan_training, ready_data
from loragate.trainer.run.changes import changes
from loragate.trainer.run.file import RunFile, with_absolute_paths, with_relative_paths
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from loragate.trainer.training import machine
from loragate.trainer.training.encoding import EncodedRow, EncodedRows
from loragate.trainer.training.plan import Parent, answer_limit
from support.training.finished_runs import write_adapter
from support.training.tiny_runs import TEMPLATE, TinyRuns, examples, loaded, write_splits

RAW = {"splits": "", "raw": ["raw.jsonl"], "near_duplicates": "keep", "similarity": 1.0}
LIMIT = {"max_steps": 4, "learning_rate": 1e-3}


def begin(run: Run, *, resume: bool = False) -> RunFolder:
    check(run, resume=resume, overwrite=False)
    return run.folder


def failed(runs: TinyRuns, **tables: Any) -> RunFolder:
    """As an attempt leaves it that ended before its first checkpoint."""
    run = loaded(runs, runs.run_file(**tables))
    folder = begin(run)
    plan_training(run, ready_data(run))
    folder.log.write_text('{"step":1}\n')
    return folder


def stopped(runs: TinyRuns, **tables: Any) -> RunFolder:
    """As an attempt leaves it that was stopped after a checkpoint."""
    folder = failed(runs, **tables)
    (folder.checkpoints / "step-000002").mkdir(parents=True)
    return folder


def corrected(rows: Sequence[Example]) -> list[Example]:
    return [
        Example((row.messages[0], Message("assistant", f"CORRECTED {row.answer}"))) for row in rows
    ]


def test_an_attempt_after_one_that_failed_has_the_settings_that_the_file_has_now(
    runs: TinyRuns,
) -> None:
    failed(runs, training=LIMIT)
    run = loaded(runs, runs.run_file(training={"max_steps": 9, "learning_rate": 5e-5}))
    folder = begin(run)
    assert not folder.log.exists()
    plan = plan_training(run, ready_data(run))
    assert (plan.settings.training.max_steps, plan.settings.training.learning_rate) == (9, 5e-5)
    assert folder.resolved().training.max_steps == 9


def test_an_attempt_after_one_that_failed_has_the_rows_that_the_files_have_now(
    runs: TinyRuns,
) -> None:
    rows = examples(60)
    write_examples(runs.root / "raw.jsonl", rows)
    failed(runs, data=RAW)
    write_examples(runs.root / "raw.jsonl", corrected(rows))
    run = loaded(runs, runs.run_file(data=RAW))
    folder = begin(run)
    ready_data(run)
    assert "CORRECTED" in (folder.data / "train.jsonl").read_text()


def test_another_way_to_prepare_the_same_files_makes_other_splits(runs: TinyRuns) -> None:
    write_examples(runs.root / "raw.jsonl", examples(60))
    folder = failed(runs, data=RAW)
    assert folder.data.is_dir()
    for changed in ({**RAW, "test_share": 0.2}, {**RAW, "similarity": 0.9}):
        assert not begin(loaded(runs, runs.run_file(data=changed))).data.exists()


def test_splits_that_would_come_out_the_same_are_not_made_again(runs: TinyRuns) -> None:
    write_examples(runs.root / "raw.jsonl", examples(60))
    folder = failed(runs, data=RAW)
    made = (folder.data / "train.jsonl").stat().st_mtime_ns
    run = loaded(runs, runs.run_file(data=RAW, training={"learning_rate": 1e-5}))
    ready = begin(run)
    ready_data(run)
    assert (ready.data / "train.jsonl").stat().st_mtime_ns == made


def test_an_estimate_is_of_the_rows_that_the_files_have_now(runs: TinyRuns) -> None:
    rows = examples(60)
    write_examples(runs.root / "raw.jsonl", rows)
    run = loaded(runs, runs.run_file(data=RAW))
    begin_estimate(run)
    ready_data(run)
    write_examples(runs.root / "raw.jsonl", corrected(rows))
    begin_estimate(run)
    assert "CORRECTED" in (ready_data(run).path / "train.jsonl").read_text()


OTHERWISE: list[tuple[dict[str, dict[str, object]], str]] = [
    ({"training": {"learning_rate": 5e-5}}, r"\[training\] learning_rate is 0.00005 and was 0.001"),
    ({"training": {"max_steps": 9}}, r"\[training\] max_steps is 9 and was 4"),
    ({"training": {"patience": 1}}, r"\[training\] patience is 1 and was 3"),
    ({"method": {"rank": 16}}, r"\[method\] rank is 16 and was 8"),
    ({"method": {"dropout": 0.1}}, r"\[method\] dropout is 0.1 and was 0.0"),
    ({"data": {"system_prompt": "Hi"}}, r'\[data\] system_prompt is "Hi" and was ""'),
    ({"data": {"splits": "other"}}, r"other \(\[data\] splits\) has changed"),
    ({"data": {"replay": "other"}}, r"\[data\] replay names other, and named nothing"),
    (
        {"model": {"chat_template": "t.jinja"}},
        r"\[model\] chat_template names t.jinja, and named nothing",
    ),
]


@pytest.mark.parametrize(("change", "message"), OTHERWISE)
def test_what_would_make_another_training_is_refused_by_name(
    runs: TinyRuns, change: dict[str, dict[str, object]], message: str
) -> None:
    folder = stopped(runs, training=LIMIT)
    write_splits(runs.root / "other", seed=3)
    (runs.root / "t.jinja").write_text(TEMPLATE + " ")
    tables = {"training": LIMIT, **change}
    if "training" in change:
        tables["training"] = {**LIMIT, **change["training"]}
    run = loaded(runs, runs.run_file(**tables))
    before = folder.resolved_file.read_bytes()
    for resume in (True, False):
        with pytest.raises(RunFolderError, match=message):
            begin(run, resume=resume)
    assert folder.resolved_file.read_bytes() == before
    assert folder.is_stopped


def test_a_file_of_rows_that_changed_is_named_and_one_that_is_gone_is_not_missed(
    runs: TinyRuns,
) -> None:
    raw = runs.root / "raw.jsonl"
    write_examples(raw, examples(60))
    stopped(runs, data=RAW)
    run = loaded(runs, runs.run_file(data=RAW))
    begin(run, resume=True)
    write_examples(raw, examples(60, seed=4))
    with pytest.raises(RunFolderError, match=r"raw.jsonl \(\[data\] raw\) has changed"):
        begin(run, resume=True)
    raw.unlink()
    begin(run, resume=True)


def test_what_does_not_reach_the_weights_may_be_mended_when_a_run_goes_on(
    runs: TinyRuns,
) -> None:
    folder = stopped(runs, training={**LIMIT, "log_every": 2, "trackers": ["tensorboard"]})
    mended = runs.run_file(
        training={**LIMIT, "log_every": 1, "save_every": 2},
        evaluation={"require": ["accuracy >= 0.5"]},
        publish={"license": "mit"},
        cost={"machine_per_hour": 2.0},
    )
    run = loaded(runs, mended)
    begin(run, resume=True)
    found = folder.resolved()
    assert found.evaluation.require == ("accuracy >= 0.5",)
    assert (found.publish.license, found.cost.machine_per_hour) == ("mit", 2.0)
    plan = plan_training(run, ready_data(run))
    assert (plan.settings.training.log_every, plan.settings.training.trackers) == (1, ())
    assert plan.settings.training.learning_rate == 1e-3
    assert folder.run_file.read_text() == run.text


def test_to_write_down_what_auto_came_to_changes_nothing(runs: TinyRuns) -> None:
    begun = runs.run_file(training={"learning_rate": "auto"}, method={"rank": "auto"})
    decided = runs.plan(begun).settings
    assert changes(begun, decided, decided) == []
    back = changes(decided, begun)
    assert {change.setting for change in back} >= {"training.learning_rate", "method.rank"}


def test_an_attempt_that_learnt_nothing_yet_is_begun_anew_by_resume_too(runs: TinyRuns) -> None:
    failed(runs, training=LIMIT)
    run = loaded(runs, runs.run_file(training={"max_steps": 9}))
    folder = begin(run, resume=True)
    assert not folder.resolved_file.exists()


def test_damaged_notes_of_an_attempt_are_no_hindrance(runs: TinyRuns) -> None:
    folder = failed(runs)
    folder.inputs_file.write_text("{")
    begin(loaded(runs, runs.run_file()))
    assert json.loads(folder.inputs_file.read_text())["files"]


WRONG: list[tuple[dict[str, dict[str, object]], type[Exception], str]] = [
    ({"evaluation": {"require": ["acuracy >= 0.9"]}}, InvalidRequirement, "names no metric"),
    ({"evaluation": {"general_text": "no.txt"}}, LoragateError, "general_text: .* cannot be read"),
    ({"publish": {"adapter": "Acme Support"}}, InvalidName, "not a valid adapter name"),
    ({"publish": {"adapter": "nobody/support"}}, TenantNotFound, "no tenant 'nobody'"),
    (
        {"publish": {"adapter": "acme/x"}, "method": {"name": "full"}},
        RunFileError,
        "makes no adapter to publish",
    ),
    ({"training": {"trackers": ["trackio"]}}, TrainingError, "not installed"),
    ({"model": {"base": "nowhere"}}, LoragateError, "nowhere"),
    ({"model": {"continue_from": "nobody/x@v1"}}, LookupError, "nobody"),
    ({"method": {"target_modules": ["q_proj", "qproj"]}}, RunFileError, "names 'qproj'"),
    ({"data": {"replay": "nowhere"}}, DataError, r"\[data\] replay: there is no"),
    ({"data": {"splits": "", "raw": ["no.csv"]}}, DataError, r"\[data\] raw: there is no .*no.csv"),
    ({"model": {"chat_template": "no.jinja"}}, DataError, "no.jinja"),
]


@pytest.mark.parametrize(("tables", "error", "message"), WRONG)
def test_a_mistake_is_told_before_anything_is_made(
    runs: TinyRuns, tables: dict[str, dict[str, object]], error: type[Exception], message: str
) -> None:
    run = loaded(runs, runs.run_file(**tables))
    with pytest.raises(LoragateError, match=message) as told:
        check(run, resume=False, overwrite=False, publishes=True)
    assert isinstance(told.value, error | RunUnsound)
    assert not run.folder.root.exists()


def test_all_mistakes_are_told_at_once(runs: TinyRuns) -> None:
    tables: dict[str, Any] = {
        "evaluation": {"require": ["acuracy >= 0.9"]},
        "publish": {"adapter": "Acme Support"},
        "training": {"trackers": ["trackio"]},
    }
    with pytest.raises(RunUnsound, match=r"(?s)3 things.*acuracy.*trackio.*Acme Support"):
        require_sound(loaded(runs, runs.run_file(**tables)), publishes=True)


def test_a_requirement_of_labels_that_no_row_has_is_refused(runs: TinyRuns) -> None:
    splits = runs.random_splits()
    evaluation: dict[str, object] = {"require": ["accuracy >= 0.5"]}
    run = loaded(runs, runs.run_file(data={"splits": str(splits.path)}, evaluation=evaluation))
    with pytest.raises(RunFileError, match=r"'accuracy >= 0.5', and no row .* has a label"):
        plan_training(run, splits)


def test_a_disk_that_is_too_small_is_told_before_the_training(
    runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = loaded(runs, runs.run_file())
    monkeypatch.setattr("loragate.trainer.pipeline.checks._DISK_BYTES", 1 << 40)
    with pytest.raises(RunFolderError, match="make room"):
        plan_training(run, ready_data(run))


@pytest.fixture
def command(runs: TinyRuns, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("LORAGATE_HOME", str(runs.home.root))
    app = typer.Typer(pretty_exceptions_enable=False)
    cli_train.add_to(app)
    return app


def test_a_check_says_what_is_wrong_and_makes_nothing(runs: TinyRuns, command: typer.Typer) -> None:
    (runs.root / "raw.jsonl").write_text('{"messages": [\n')
    run = loaded(runs, runs.run_file(data=RAW, training={"trackers": ["trackio"]}))
    ended = CliRunner().invoke(command, [str(run.file), "--check", "--only-train"])
    assert ended.exit_code == 1
    assert "✗ trackers: " in ended.stdout
    assert "✗ data: " in ended.stdout
    assert "raw.jsonl" in ended.stdout
    assert "✓ tokenizer" in ended.stdout
    assert not run.folder.root.exists()


def test_a_check_of_a_sound_run_says_so_of_each_thing(runs: TinyRuns, command: typer.Typer) -> None:
    write_examples(runs.root / "raw.jsonl", examples(60))
    run = loaded(runs, runs.run_file(data=RAW))
    ended = CliRunner().invoke(command, [str(run.file), "--check", "--only-train", "--json"])
    assert (ended.exit_code, json.loads(ended.stdout)) == (0, {"sound": True, "problems": {}})
    assert not run.folder.root.exists()


@pytest.mark.parametrize(
    ("tables", "name", "message"),
    [
        ({"data": {**RAW, "max_tokens": 20}}, "data", r"raw.jsonl:\d+ has \d+ tokens, and .* 20"),
        (
            {"data": RAW, "training": {"batch_size": 10**9}},
            "memory",
            r"lower \[training\] batch_size",
        ),
    ],
)
def test_a_check_looks_at_the_longest_rows(
    runs: TinyRuns, command: typer.Typer, tables: dict[str, Any], name: str, message: str
) -> None:
    write_examples(runs.root / "raw.jsonl", examples(60))
    run = loaded(runs, runs.run_file(**tables))
    ended = CliRunner().invoke(command, [str(run.file), "--check", "--only-train", "--json"])
    problems = json.loads(ended.stdout)["problems"]
    assert list(problems) == [name]
    assert re.search(message, problems[name])


def test_whatever_comes_less_often_than_there_are_steps_comes_at_the_end(runs: TinyRuns) -> None:
    run = runs.run_file(
        training={"max_steps": 3, "log_every": 50, "evaluate_every": 50, "save_every": 50}
    )
    folder, result = runs.train(run)
    assert folder.result() == result
    assert result.metrics["training_loss"] > 0
    assert result.diagnosis.best_step == 3


def test_the_last_step_is_validated_wherever_it_falls(runs: TinyRuns) -> None:
    folder, _ = runs.train(runs.run_file(training={"max_steps": 3, "evaluate_every": 2}))
    assert [line["step"] for line in folder.steps() if "validation_loss" in line] == [0, 2, 3]


def test_a_result_from_before_can_be_read_though_a_figure_is_missing(runs: TinyRuns) -> None:
    folder, result = runs.train(runs.run_file(training={"max_steps": 1}))
    written = json.loads(folder.result_file.read_text())
    written["metrics"]["training_loss"] = None
    folder.result_file.write_text(json.dumps(written))
    assert folder.result().metrics == {
        key: value for key, value in result.metrics.items() if key != "training_loss"
    }


def row(*labels: int) -> EncodedRow:
    return EncodedRow(labels, labels)


def test_the_evaluation_s_answers_have_room_for_the_longest_in_the_data() -> None:
    short, long = row(-100, 1, 2), row(-100, *range(200), -100, *range(30))
    assert answer_limit([EncodedRows((short,))]) == 32
    assert answer_limit([EncodedRows((short,)), EncodedRows((long,))]) == 256


def test_the_limit_of_answers_is_written_down_with_the_rest(runs: TinyRuns) -> None:
    assert runs.plan(runs.run_file()).settings.evaluation.max_tokens == 32
    given = runs.run_file(evaluation={"max_tokens": 7})
    assert runs.plan(given).settings.evaluation.max_tokens == 7


def test_a_batch_is_as_large_as_memory_holds_and_a_step_has_the_same_rows(
    runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.run_file(training={"batch_size": "auto", "group_by_length": False})
    roomy = runs.plan(run)
    assert roomy.settings.training.batch_size == 8
    free = 0.9 * machine.free_memory_bytes("cpu")
    monkeypatch.setattr(machine, "free_memory_bytes", lambda _device: 745 * 2**20)
    tight = runs.plan(run)
    training = tight.settings.training
    assert free > 745 * 2**20
    assert training.batch_size != 8
    assert msgspec.to_builtins(training)["batch_size"] * training.gradient_accumulation == 8
    assert tight.schedule.order == roomy.schedule.order


def test_layers_that_were_written_as_an_expression_are_gone_on_with_by_their_names(
    tmp_path: Path,
) -> None:
    folder = write_adapter(tmp_path / "adapter", target_modules=r".*\.(q_proj|v_proj)")
    version = AdapterVersion("acme", "x", 1, "sha256:0", 1)
    modules = [
        f"model.layers.{layer}.self_attn.{name}"
        for layer in (0, 1)
        for name in ("q_proj", "v_proj")
    ]
    assert Parent(version, folder).target_modules(modules) == ("q_proj", "v_proj")


def test_every_setting_but_those_beside_the_training_is_compared() -> None:
    run = msgspec.convert({"data": {"splits": "x"}}, RunFile)
    tree = msgspec.to_builtins(run)
    free = {"evaluation", "publish", "cost"}
    beside = {"trackers", "log_every", "save_every"}
    places = {"raw", "splits", "replay", "base", "continue_from", "chat_template"}
    other = msgspec.structs.replace(run, seed=5)
    assert [change.setting for change in changes(run, other)] == ["seed"]
    for table, settings in tree.items():
        if not isinstance(settings, dict) or table in free:
            continue
        for key in settings.keys() - beside - places:
            changed = _with(run, table, key)
            assert [each.setting for each in changes(run, changed)] == [f"{table}.{key}"]


def _with(run: RunFile, table: str, key: str) -> RunFile:
    section = msgspec.structs.replace(getattr(run, table), **{key: "something else"})
    return msgspec.structs.replace(run, **{table: section})


def test_a_data_set_of_the_hub_is_no_path(runs: TinyRuns) -> None:
    run = runs.run_file(data={"splits": "", "raw": ["hub:someone/chats", "raw.jsonl"]})
    write_examples(runs.root / "raw.jsonl", examples(8))
    require_sound(loaded(runs, run), publishes=False)
    absolute = with_absolute_paths(run, runs.root).data.raw
    assert absolute == ("hub:someone/chats", str((runs.root / "raw.jsonl").resolve()))
    assert with_relative_paths(with_absolute_paths(run, runs.root), runs.root).data == run.data
