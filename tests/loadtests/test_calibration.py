"""A server of known pace, measured through Locust's own users in a process of theirs."""

from pathlib import Path

import pytest

from loadtests.calibration import Calibration, check
from loadtests.driving import CALIBRATION_FILE, Order, calibrate
from loadtests.records import Run, read_run
from loadtests.scenarios import SCENARIOS

SMOKE = Path(__file__).parent / "smoke.toml"
MORE_ATTEMPTS = 2  # a machine that others use may be busy for a moment


def calibrated(folder: Path, pace_seconds: float) -> Calibration:
    order = Order(SCENARIOS["calibrate"], folder, Path("unused"), objectives=SMOKE)
    return calibrate(order, pace_seconds)


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a calibration that passed."""
    folder = tmp_path_factory.mktemp("calibration")
    found = calibrated(folder, 0.02)
    for _ in range(MORE_ATTEMPTS):
        if found.refusals:
            found = calibrated(folder, 0.02)
    assert not found.refusals
    return folder


def test_known_pace_is_measured_over_both_protocols(paced: Path) -> None:
    found = check(read_run(paced / CALIBRATION_FILE))
    assert [each.protocol for each in found.measured] == ["http", "grpc"]
    for each in found.measured:
        assert each.gap_mean == pytest.approx(0.02, rel=0.05)
        assert each.ttft_p50 == pytest.approx(0.1, rel=0.15)


def test_pace_that_is_wrong_on_purpose_is_refused(tmp_path: Path) -> None:
    found = calibrated(tmp_path, 0.022)
    assert [reason for reason in found.refusals if "Over http, the mean gap" in reason]
    assert [reason for reason in found.refusals if "Over grpc, the mean gap" in reason]


def test_client_that_gathers_tokens_is_refused_although_its_mean_is_right(paced: Path) -> None:
    run = read_run(paced / CALIBRATION_FILE)
    for sample in run.samples:
        # As if the stream had been read in blocks of eight events.
        sample.frames = [sample.frames[at - at % 8] for at in range(len(sample.frames))]
    assert [reason for reason in check(run).refusals if "median gap" in reason]


def test_stream_that_never_came_is_refused(paced: Path) -> None:
    run = read_run(paced / CALIBRATION_FILE)
    only_http = Run(
        run.header,
        [sample for sample in run.samples if sample.protocol == "http"],
        run.phases,
        client=run.client,
        is_complete=True,
    )
    assert [reason for reason in check(only_http).refusals if "Over grpc, not one" in reason]
