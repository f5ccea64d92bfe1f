"""Runs of the tiny model: what they leave, that they repeat and resume to the byte, and stops."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from rich.progress import Progress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loragate.adapters.format.files import inspect
from loragate.adapters.home import Home
from loragate.trainer.errors import RunFolderError, TrainingError
from loragate.trainer.run.file import RunFile
from loragate.trainer.run.folder import RunFolder, RunResult
from loragate.trainer.training.checkpoints import Checkpoints
from loragate.trainer.training.train import Interrupted, train
from support.training.tiny_runs import TinyRuns

LEARNS = {"max_steps": 12, "learning_rate": 1e-2, "evaluate_every": 4}


def weights(folder: RunFolder) -> bytes:
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_home: tuple[Home, Path]
) -> tuple[RunFolder, RunResult]:
    """A run that nothing disturbed, to hold others against."""
    runs = TinyRuns(tmp_path_factory.mktemp("whole"), *tiny_home)
    return runs.train(runs.run_file(training=LEARNS))


def test_a_run_lowers_the_loss_and_leaves_an_adapter_a_log_a_curve_and_a_result(
    whole: tuple[RunFolder, RunResult],
) -> None:
    folder, result = whole
    assert result == folder.result()
    assert result.steps == 12
    assert result.diagnosis.best_validation_loss < 0.98 * result.diagnosis.first_validation_loss
    assert folder.curve.read_bytes().startswith(b"\x89PNG")
    steps = list(folder.steps())
    assert [line["step"] for line in steps if "validation_loss" in line] == [0, 4, 8, 12]
    assert [line["step"] for line in steps if "loss" in line] == [*range(1, 13)]
    assert steps[-2]["tokens"] == result.training_tokens
    assert inspect(folder.adapter).manifest.rank == 8
    assert not folder.checkpoints.exists()


def test_the_tokens_of_a_run_are_those_of_its_rows_without_padding(runs: TinyRuns) -> None:
    run = runs.run_file(training={"max_steps": 0, "epochs": 1, "batch_size": 8})
    plan = runs.plan(run)
    _, result = runs.train(run)
    assert result.training_tokens == plan.training.tokens
    assert result.supervised_tokens == plan.training.supervised
    assert result.epochs == 1


def test_the_saved_adapter_says_what_the_trained_one_said(
    runs: TinyRuns, whole: tuple[RunFolder, RunResult]
) -> None:
    plan = runs.plan(runs.run_file(training=LEARNS))
    folder, result = whole
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(runs.model, dtype=torch.float32), folder.adapter
    )
    nats = tokens = 0.0
    for row in plan.validation.rows:
        labels = torch.tensor([row.labels])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row.ids]), labels=labels).loss
        nats += float(loss) * row.supervised
        tokens += row.supervised
    assert nats / tokens == pytest.approx(result.diagnosis.best_validation_loss, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "rslora", "full"])
def test_the_same_run_twice_gives_the_same_bytes(runs: TinyRuns, method: str) -> None:
    run = runs.run_file(
        method={"name": method, "dropout": 0.1}, training={"max_steps": 4, "learning_rate": 1e-3}
    )
    first, again = (runs.train(run, name)[1].adapter_digest for name in ("one", "two"))
    other, _ = runs.train(msgspec.structs.replace(run, seed=1), "three")
    assert first == again
    assert other.result().adapter_digest != first


def stopped_after(runs: TinyRuns, run: RunFile, step: int, name: str) -> RunFolder:
    """A run that is interrupted, as by Ctrl-C, when the step ends."""
    folder = RunFolder(runs.root / name)
    folder.root.mkdir()
    with pytest.raises(Interrupted, match=f"stopped after step {step}"):
        train(runs.run(run, name, _At(step, press_ctrl_c)), runs.plan(run))
    return folder


class _At(Progress):
    """Has something happen when the bar shows a step."""

    def __init__(self, step: int, happen: Callable[[], object]) -> None:
        super().__init__(disable=True)
        self._sign = f"Step {step}/"
        self._happen = happen

    def update(self, *_arguments: Any, **fields: Any) -> None:
        if str(fields.get("description", "")).startswith(self._sign):
            self._happen()


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(runs: TinyRuns, step: int) -> None:
    run = runs.run_file(
        method={"dropout": 0.1},
        training={**LEARNS, "max_steps": 8, "gradient_accumulation": 2, "batch_size": 4},
    )
    whole, expected = runs.train(run, "whole")
    stopped_after(runs, run, step, "stopped")
    resumed, result = runs.train(run, "stopped")
    assert weights(resumed) == weights(whole)
    assert result.diagnosis == expected.diagnosis
    assert [line["step"] for line in resumed.steps()] == [line["step"] for line in whole.steps()]


KILLED = """
import os, signal
from pathlib import Path
from support.training.tiny_runs import TinyRuns
from loragate.adapters.home import Home
from loragate.trainer.run.file import read_run_file
from loragate.trainer.training.checkpoints import Checkpoints

calls = []
as_it_was = Checkpoints.{moment}

def die(self, *arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return as_it_was(self, *arguments)

Checkpoints.{moment} = die
run = read_run_file(Path({run!r}))
TinyRuns(Path({root!r}), Home(Path({home!r})), Path(run.model.base)).train(run, "killed")
"""


@pytest.mark.parametrize(
    ("moment", "call"),
    [
        ("commit", 2),
        pytest.param("keep_best", 3, marks=pytest.mark.slow),
        pytest.param("_name", 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_while_it_wrote_goes_on_to_the_same_bytes(
    runs: TinyRuns, moment: str, call: int, whole: tuple[RunFolder, RunResult]
) -> None:
    run = runs.run_file(training=LEARNS)
    (runs.root / "run.toml").write_text(run.to_toml())
    script = KILLED.format(
        root=str(runs.root),
        home=str(runs.home.root),
        run=str(runs.root / "run.toml"),
        moment=moment,
        call=call,
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not RunFolder(runs.root / "killed").is_complete
    resumed, _ = runs.train(run, "killed")
    assert weights(resumed) == weights(whole[0])


def test_a_run_in_bf16_learns_what_one_in_fp32_does(
    runs: TinyRuns, whole: tuple[RunFolder, RunResult]
) -> None:
    exact = whole[1]
    _, rough = runs.train(runs.run_file(training={**LEARNS, "precision": "bf16"}))
    assert rough.diagnosis.best_validation_loss == pytest.approx(
        exact.diagnosis.best_validation_loss, rel=0.01
    )
    assert rough.adapter_digest != exact.adapter_digest


def test_one_batch_of_eight_moves_the_weights_as_two_of_four_do(runs: TinyRuns) -> None:
    same = {"max_steps": 3, "learning_rate": 1e-3, "group_by_length": False}
    folders = [
        runs.train(
            runs.run_file(
                training={**same, "batch_size": size, "gradient_accumulation": 8 // size}
            ),
            f"of-{size}",
        )[0]
        for size in (8, 4)
    ]
    one, other = (load_file(folder.adapter / "adapter_model.safetensors") for folder in folders)
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=2e-5), name


def test_a_run_that_overfits_stops_and_keeps_the_weights_of_its_minimum(runs: TinyRuns) -> None:
    # Answers at random: the more of them are learnt by heart, the worse are those not seen.
    run = runs.run_file(
        method={"name": "full"},
        training={
            "max_steps": 200,
            "learning_rate": 3e-3,
            "schedule": "constant",
            "evaluate_every": 5,
            "patience": 3,
        },
    )
    splits = runs.random_splits()
    folder = RunFolder(runs.root / "overfit")
    folder.root.mkdir()
    result = train(runs.run(run, "overfit"), runs.plan(run, splits))
    diagnosis = result.diagnosis
    assert diagnosis.fit == "overfitted"
    assert result.steps == diagnosis.best_step + 3 * 5 < 200
    losses = {
        line["step"]: line["validation_loss"]
        for line in folder.steps()
        if "validation_loss" in line
    }
    assert min(losses, key=lambda step: losses[step]) == diagnosis.best_step
    assert f"at step {diagnosis.best_step}" in diagnosis.sentence


def test_ctrl_c_leaves_one_whole_checkpoint_and_says_where_it_stopped(runs: TinyRuns) -> None:
    folder = stopped_after(runs, runs.run_file(training=LEARNS), 6, "stopped")
    latest = Checkpoints(folder.checkpoints).latest()
    assert latest is not None
    assert latest.name == "step-000006"
    assert not folder.is_complete


def test_data_that_changed_since_the_stop_are_refused(runs: TinyRuns) -> None:
    run = runs.run_file(training=LEARNS)
    folder = stopped_after(runs, run, 3, "stopped")
    changed = runs.random_splits()
    with pytest.raises(RunFolderError, match="the data have changed"):
        train(runs.run(run, folder.root.name), runs.plan(run, changed))


def test_a_loss_that_is_no_number_stops_the_run_with_what_to_do(runs: TinyRuns) -> None:
    run = runs.run_file(
        method={"name": "full"},
        training={"learning_rate": 1e30, "max_gradient_norm": 1e30, "warmup_share": 0.0},
    )
    with pytest.raises(TrainingError, match=r"no number|the loss is (nan|inf).*learning_rate"):
        runs.train(run)


def test_memory_that_is_not_there_is_refused_with_figures(
    runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "loragate.trainer.training.machine.free_memory_bytes", lambda _device: 100 * 2**20
    )
    with pytest.raises(TrainingError, match=r"about 0\.\d GiB .* 0\.1 GiB are free; lower"):
        runs.train(runs.run_file())


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """A limit on the size of files stands for a disk that is full, from the call to the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_in_a_run_is_told_and_costs_nothing_learnt(
    runs: TinyRuns, full_disk: Callable[[], None], whole: tuple[RunFolder, RunResult]
) -> None:
    run = runs.run_file(training=LEARNS)
    folder = RunFolder(runs.root / "filled")
    folder.root.mkdir()
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(RunFolderError, match=r"step-000004 is whole: make room and go on with"):
        train(runs.run(run, "filled", _At(5, full_disk)), runs.plan(run))
    resource.setrlimit(resource.RLIMIT_FSIZE, room)
    resumed, _ = runs.train(run, "filled")
    assert weights(resumed) == weights(whole[0])


def test_memory_that_runs_out_in_a_run_is_told_and_costs_nothing_learnt(
    runs: TinyRuns, whole: tuple[RunFolder, RunResult]
) -> None:
    run = runs.run_file(training=LEARNS)
    folder = RunFolder(runs.root / "starved")
    folder.root.mkdir()
    starved = _At(5, lambda: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(TrainingError, match=r"memory is not enough for batches of \d+ rows; lower"):
        train(runs.run(run, "starved", starved), runs.plan(run))
    resumed, _ = runs.train(run, "starved")
    assert weights(resumed) == weights(whole[0])


def test_a_tracker_that_is_not_installed_is_named(runs: TinyRuns) -> None:
    with pytest.raises(TrainingError, match="'trackio', which is not installed"):
        runs.train(runs.run_file(training={"trackers": ["trackio"]}))


def test_tensorboard_gets_the_losses(runs: TinyRuns) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, result = runs.train(runs.run_file(training={"trackers": ["tensorboard"]}))
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    losses = [event.value for event in events.Scalars("eval/loss")]
    assert losses[-1] == pytest.approx(result.diagnosis.last_validation_loss)
