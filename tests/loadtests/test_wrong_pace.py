"""A calibration that must fail, on a busy machine all the more: other tests may run beside it."""

from pathlib import Path

from loadtests.driving import Order, calibrate
from loadtests.scenarios import SCENARIOS
from support.load_tests.smoke_runs import SMOKE


def test_pace_that_is_wrong_on_purpose_is_refused(tmp_path: Path) -> None:
    order = Order(SCENARIOS["calibrate"], tmp_path, Path("unused"), objectives=SMOKE)
    found = calibrate(order, pace_seconds=0.022)
    assert [reason for reason in found.refusals if "Over http, the mean gap" in reason]
    assert [reason for reason in found.refusals if "Over grpc, the mean gap" in reason]
