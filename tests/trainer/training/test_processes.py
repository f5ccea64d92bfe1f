"""Two processes on one machine, as `accelerate launch` starts them."""

import os
import socket
import subprocess
import sys

import pytest

from loragate.trainer.pipeline.pipeline import check, train_run
from loragate.trainer.run.folder import RunFolder
from support.training.tiny_runs import TinyRuns, loaded

COMMAND = "import typer; from loragate.trainer.cli.train import train; typer.run(train)"


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_rows(runs: TinyRuns) -> None:
    same = {"max_steps": 4, "learning_rate": 1e-3, "group_by_length": False}
    alone = loaded(runs, runs.run_file(training={**same, "batch_size": 8}))
    check(alone, resume=False, overwrite=False)
    expected = train_run(alone)
    together = loaded(runs, runs.run_file(training={**same, "batch_size": 4}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "LORAGATE_HOME": str(runs.home.root),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-c", COMMAND, str(together.file), "--only-train", "--overwrite"]
    processes = [
        subprocess.Popen(
            arguments,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    result = RunFolder(together.folder.root).result()
    assert result.training_tokens == expected.training_tokens
    assert result.diagnosis.last_validation_loss == pytest.approx(
        expected.diagnosis.last_validation_loss, rel=1e-4
    )
