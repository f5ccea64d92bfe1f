import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from rich.console import Console

from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.trial_records import Arm, FeedbackRow, Trial, TrialStatus
from loragate.server.experiments.assignment import Unit
from loragate.server.experiments.gates import parse_gate
from loragate.server.experiments.metrics import Outcome
from loragate.server.experiments.plans import ExperimentPlan, to_json
from loragate.server.experiments.report import TrialReport, report_of, to_html, to_terminal
from loragate.server.experiments.running import MOST_UNITS, RunningTrial
from loragate.server.experiments.tally import UnitRule

AT = datetime(2026, 11, 23, tzinfo=UTC)
PLAN = ExperimentPlan(
    (("merged", 0.5), ("champion", 0.5)),
    tuple(map(parse_gate, ("thumbs>=champion-5%", "tokens_per_second_mean>1.05x", "rating>=4"))),
    rule=UnitRule(1),
)


def under_way(most_units: int = MOST_UNITS) -> RunningTrial:
    version = AdapterVersion("acme", "support", 3, "d", 3)
    arms = Arm(1, "merged", version, "merged", 0.5), Arm(2, "champion", version, "unmerged", 0.5)
    adapter = AdapterName("acme", "support")
    trial = Trial(
        3, "experiment", adapter, "s", to_json(PLAN), arms, TrialStatus("RUNNING"), AT, AT, None
    )
    return RunningTrial(trial, PLAN, most_units)


def shown(report: TrialReport) -> str:
    out = io.StringIO()
    Console(width=160, file=out).print(to_terminal(report))
    return out.getvalue()


@pytest.fixture(scope="module")
def report() -> TrialReport:
    running, random = under_way(), np.random.default_rng(0)
    for number in range(400):
        at = AT + timedelta(seconds=number)
        given = running.assign(Unit("user", f"user-{number}"))
        exposure = running.expose(given, "acme", f"req-{number}", at)
        slow = 1.0 if given.arm.name == "champion" else 0.6
        running.observe(exposure, Outcome(False, slow * random.lognormal(0, 0.3), 40), at)
        liked = float(random.random() < 0.8)
        running.record(FeedbackRow("acme", "", "thumbs", liked, "", exposure.id, at))
    return report_of(running, AT + timedelta(hours=1))


def test_report_says_what_each_gate_came_to(report: TrialReport):
    [compared] = report.comparisons
    states = [str(found.state) for found in compared.verdict.answers]

    assert states == ["OPEN", "HOLDS", "OPEN"]
    assert compared.verdict.decision == "INCONCLUSIVE"
    assert sum(arm.tally.units for arm in report.arms) == 400
    assert report.arms[0].answers == "acme/support@v3, merged"


def test_limits_over_time_end_at_those_of_the_verdict(report: TrialReport):
    [compared] = report.comparisons
    for curve, found in zip(compared.curves[:2], compared.verdict.answers, strict=False):
        assert list(curve.units) == sorted(set(curve.units))
        assert (curve.lowers[-1], curve.uppers[-1]) == (found.interval.lower, found.interval.upper)
    assert compared.curves[2].units == ()


def test_page_needs_nothing_else_and_says_what_the_report_says(report: TrialReport):
    page = to_html(report)

    assert not re.search(r"""(src|href)=["']?(https?:|/)|@import|<script""", page)
    assert page.count("<svg") == 3
    for text in (
        "Experiment 3 of acme/support",
        "INCONCLUSIVE",
        "rating",
        "acme/support@v3, merged",
    ):
        assert text in page
    assert "thumbs&gt;=champion-5%" in page


def test_page_of_a_trial_without_requests_is_made_too():
    page = to_html(report_of(under_way(), AT))

    assert "there is no feedback &#39;thumbs&#39; of merged yet" in page


def test_report_says_once_that_further_units_do_not_count():
    running = under_way(most_units=2)
    for number in range(2):
        assert "Counting has ended" not in to_html(report_of(running, AT))
        running.expose(running.assign(Unit("user", f"{number}")), "acme", f"req-{number}", AT)

    full = report_of(running, AT)

    assert to_html(full).count("Counting has ended: 2 units have come, the most that count") == 1
    assert shown(full).count("Counting has ended") == 1


def test_report_says_why_a_trial_that_ended_long_ago_has_no_figures():
    running = under_way()
    assert "retention" not in shown(report_of(running, AT))

    running.trial = replace(running.trial, ended_at=AT)

    assert "kept no longer, by retention.observations_days" in shown(report_of(running, AT))


def test_terminal_shows_arms_gates_and_verdict(report: TrialReport):
    text = shown(report)

    for words in ("merged", "INCONCLUSIVE", "tokens_per_second_mean>1.05x", "HOLDS", "about"):
        assert words in text
