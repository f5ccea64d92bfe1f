"""Swaps under load against a real gateway over an engine that echoes; how long they take is another
matter, so other tests may run beside it.
"""

from pathlib import Path

from loadtests.calibration import Calibration
from loadtests.driving import RUN_FILE, Order, run_calibrated
from loadtests.records import read_run
from loadtests.scenarios import SCENARIOS
from support.load_tests.smoke_runs import SMOKE, echoing

# The second swap is asked for after ten seconds, the third would be after fifteen.
TRAFFIC = ("--rate", "8", "--duration", "14", "--prompt-words", "8,16", "--output-tokens", "16,32")


def test_aliases_move_under_load_and_no_answer_is_lost_or_stale(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    scenario = SCENARIOS["swap-under-load"]
    order = Order(scenario, tmp_path, tiny_adapter, objectives=SMOKE, options=TRAFFIC)
    outcome = run_calibrated(order, echoing(tiny_model), Calibration([], []))

    assert outcome.refusals == []
    assert outcome.exit_code == 0, outcome.verdict.findings
    run = read_run(tmp_path / RUN_FILE)
    assert len(run.swaps) == 2
    served = {sample.served_by for sample in run.samples}
    assert {"tenant-0/adapter-0@v1", "tenant-0/adapter-0@v2"} <= served
    assert outcome.report is not None
    assert "The longest gap in a stream while an alias moved" in (
        (tmp_path / "report.md").read_text()
    )
