"""A server of known pace, measured through Locust's own users in a process of theirs."""

from pathlib import Path

import pytest

from loadtests.calibration import check
from loadtests.driving import CALIBRATION_FILE
from loadtests.records import Run, read_run


@pytest.fixture
def paced(steady: Run, steady_folder: Path) -> Run:
    """A calibration that passed: no run goes on without."""
    assert steady.is_complete
    return read_run(steady_folder / CALIBRATION_FILE)


def test_known_pace_is_measured_over_both_protocols(paced: Run) -> None:
    found = check(paced)
    assert [each.protocol for each in found.measured] == ["http", "grpc"]
    for each in found.measured:
        assert each.gap_mean == pytest.approx(0.02, rel=0.05)
        assert each.ttft_p50 == pytest.approx(0.1, rel=0.15)


def test_client_that_gathers_tokens_is_refused_although_its_mean_is_right(paced: Run) -> None:
    for sample in paced.samples:
        # As if the stream had been read in blocks of eight events.
        sample.frames = [sample.frames[at - at % 8] for at in range(len(sample.frames))]
    assert [reason for reason in check(paced).refusals if "median gap" in reason]


def test_stream_that_never_came_is_refused(paced: Run) -> None:
    only_http = Run(
        paced.header,
        [sample for sample in paced.samples if sample.protocol == "http"],
        paced.phases,
        client=paced.client,
        is_complete=True,
    )
    assert [reason for reason in check(only_http).refusals if "Over grpc, not one" in reason]
