import numpy as np

from loragate.server.experiments.gates import parse_gate
from loragate.server.experiments.tally import ArmTally, Sample
from loragate.server.experiments.verdict import Decision, Question, judge

ERRORS, THUMBS = parse_gate("error_rate<1%"), parse_gate("thumbs>=champion-20%")


def arm(name: str, units: int, error_rate: float = 0.0, **others: int) -> ArmTally:
    failed = (np.arange(units) < error_rate * units).astype(float)
    liked = np.ones(units)
    return ArmTally(
        name,
        0.5,
        units,
        others.get("requests", units),
        others.get("fallbacks", 0),
        {"key": others.get("keys", 0), "user": units - others.get("keys", 0)},
        {"error_rate": Sample.of(failed), "thumbs": Sample.of(liked)},
    )


def test_challenger_passes_when_every_gate_holds():
    verdict = judge(Question((ERRORS, THUMBS)), arm("challenger", 1000), arm("champion", 1000))

    assert verdict.decision is Decision.PASS
    assert verdict.reason == "every gate holds: error_rate<1%, thumbs>=champion-20%"


def test_challenger_fails_with_one_gate_and_the_reason_has_its_figures():
    verdict = judge(Question((ERRORS, THUMBS)), arm("challenger", 100, 0.4), arm("champion", 100))

    assert verdict.decision is Decision.FAIL
    assert verdict.reason.startswith("error_rate<1% fails: it is at least ")
    assert "(40 % in 100 units)" in verdict.reason


def test_open_verdict_says_what_every_open_gate_waits_for():
    verdict = judge(Question((ERRORS, THUMBS)), arm("challenger", 5), arm("champion", 5))

    assert verdict.decision is Decision.INCONCLUSIVE
    assert [line.split(":")[0] for line in verdict.missing] == [str(ERRORS), str(THUMBS)]
    assert verdict.reason == verdict.missing[0]


def test_open_verdict_says_if_units_are_only_keys():
    challenger, champion = arm("challenger", 3, keys=3), arm("champion", 2, keys=2)
    verdict = judge(Question((ERRORS,)), challenger, champion)

    assert verdict.missing[-1].startswith("5 of 5 units are API keys")


def test_lost_units_block_any_verdict():
    verdict = judge(Question((ERRORS,)), arm("challenger", 100, 0.9), arm("champion", 2000))

    assert verdict.decision is Decision.BLOCKED
    assert "challenger 100, champion 2000 units" in verdict.reason


def test_units_of_other_arms_count_for_the_sample_ratio():
    arms = [arm(name, 1000) for name in ("challenger", "champion")]
    verdict = judge(Question((ERRORS,)), *arms, others=[arm("third", 10)])

    assert verdict.decision is Decision.BLOCKED


def test_arm_that_others_had_to_answer_for_cannot_be_judged():
    dead = arm("challenger", 1000, requests=1000, fallbacks=60)
    verdict = judge(Question((ERRORS,)), dead, arm("champion", 1000))

    assert verdict.decision is Decision.BLOCKED
    assert "60 of 1000 requests of challenger" in verdict.reason


def test_more_chances_to_fail_ask_for_more_evidence_of_failure_and_not_of_holding():
    few_errors = arm("challenger", 5, 0.6)
    decisions = [
        judge(Question((ERRORS,), chances_to_fail=chances), few_errors, arm("champion", 5)).decision
        for chances in (1, 1000)
    ]
    assert decisions == [Decision.FAIL, Decision.INCONCLUSIVE]

    steps = Question((ERRORS,), chances_to_fail=1000)
    held = judge(steps, arm("challenger", 1000), arm("champion", 1000))
    assert held.decision is Decision.PASS


def test_nothing_asked_is_passed():
    verdict = judge(Question(()), arm("challenger", 0), None)

    assert (verdict.decision, verdict.reason) == (Decision.PASS, "there is no gate")
