"""How often the statistics are wrong, and how soon they are right, measured on made-up traffic.

    python -m bench.simulate                     prints the tables
    python -m bench.simulate --write FILE.md     puts them between its marks

In the first table nothing is there to be found, or the truth lies exactly on the bound, which is
the hardest case; the verdict is asked for after every single sample, and an experiment counts as
wrong if it was wrong at any of them. In the second there is something to be found.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2

from loragate.server.experiments.confidence_sequences import LEAST_UNITS, ShareBet, half_width
from loragate.server.experiments.gates import Gate, GateState, answer, parse_gate
from loragate.server.experiments.non_inferiority import Pairs
from loragate.server.experiments.sample_ratio import ALARM
from loragate.server.experiments.tally import ArmTally, Floats, Sample

ALPHA = 0.05
SEED = 20261123
BEGIN, END = "<!-- simulation: begin -->", "<!-- simulation: end -->"
_ENOUGH = math.log(1 / ALPHA)
_RATING = np.array([0.05, 0.07, 0.13, 0.35, 0.40])
_SPREAD = 0.5  # of the logarithm of a time, as between requests of one model
_MOST_UNITS = 20_000

Random = np.random.Generator
Run = Callable[[Random, int], bool]


@dataclass(frozen=True, slots=True)
class Null:
    """An experiment in which a verdict would be wrong; `run` says whether there was one."""

    name: str
    wrong: str
    run: Run
    alpha: float | None = ALPHA


@dataclass(frozen=True, slots=True)
class Truth:
    """An experiment in which a gate does hold, or does not."""

    gate: Gate
    truth: str
    draw: Callable[[Random, int], tuple[Floats, Floats]]
    expected: GateState


def nulls() -> tuple[Null, ...]:
    return (
        Null("thumbs, 5 % fewer than the champion's 80 %", "not inferior by 5 %", _thumbs),
        Null("thumbs, 5 % fewer than the champion's 80 %", "inferior by 5 %", _thumbs_inferior),
        Null("thumbs, 3 % fewer than the champion's 97 %", "not inferior by 3 %", _rare_thumbs),
        Null("rating from 1 to 5, 0.1 lower", "not inferior by 0.1", _rating),
        Null("rating, 10 from each user", "not inferior by 0.1", _rating_by_user),
        Null("error rate of 1 %", "below 1 %", _errors(-1)),
        Null("error rate of 1 %", "not below 1 %", _errors(+1)),
        Null("p95 of 800 ms", "below, or above, 800 ms", _quantile),
        Null("p95 1.2 times the champion's", "below, or above, 1.2x", _quantile_ratio),
        Null("same tokens/s", "faster", _means(1.0, spikes=False)),
        Null("same tokens/s, 1 of 100 ten times slower", "faster", _means(1.0, spikes=True)),
        Null("duration 1.1 times the champion's", "below 1.1x", _means(1.1, spikes=False)),
        Null("units split as declared", "sample ratio alarm", _sample_ratio, None),
        Null("same tokens/s, with a t-test at p < 0.05", "faster", _t_test, None),
        Null("rating, 10 from each user, each counted by itself", "not inferior", _naive, None),
    )


def truths() -> tuple[Truth, ...]:
    return (
        Truth(parse_gate("thumbs>=champion-5%"), "equal, 80 %", _thumb_arms(0), GateState.HOLDS),
        Truth(parse_gate("thumbs>=champion-5%"), "5 % more", _thumb_arms(0.05), GateState.HOLDS),
        Truth(parse_gate("thumbs>=champion-5%"), "20 % fewer", _thumb_arms(-0.2), GateState.FAILS),
        Truth(parse_gate("rating>=champion-0.1"), "equal", _rating_arms(0), GateState.HOLDS),
        Truth(parse_gate("rating>=champion-0.25"), "equal", _rating_arms(0), GateState.HOLDS),
        Truth(parse_gate("rating>=champion-0.1"), "1 lower", _rating_arms(1), GateState.FAILS),
        Truth(parse_gate("error_rate<1%"), "0.1 %", _error_arms(0.001), GateState.HOLDS),
        Truth(parse_gate("error_rate<1%"), "10 %", _error_arms(0.1), GateState.FAILS),
        Truth(parse_gate("ttft_p95<1.2x"), "equal", _time_arms(1), GateState.HOLDS),
        Truth(parse_gate("ttft_p95<1.2x"), "2 times slower", _time_arms(2), GateState.FAILS),
        Truth(parse_gate("tokens_per_second_mean>1x"), "1.1x", _time_arms(1.1), GateState.HOLDS),
        Truth(parse_gate("tokens_per_second_mean>1x"), "1.6x", _time_arms(1.6), GateState.HOLDS),
    )


def wrong_rate(null: Null, runs: int, units: int, seed: int = SEED) -> float:
    """The part of experiments that were wrong at any of their looks."""
    return sum(null.run(random, units) for random in _randoms(runs, seed)) / runs


def units_to_verdict(truth: Truth, runs: int, seed: int = SEED) -> tuple[float, float, float]:
    """Units of the challenger beside as many of the champion: the median, the 90th percentile, and
    the part of experiments that came to the expected verdict first. Looks here are 10 % apart.
    """
    ends = [_units_to_verdict(truth, random) for random in _randoms(runs, seed)]
    units = [units for units, _ in ends]
    right = sum(is_right for _, is_right in ends) / runs
    return float(np.median(units)), float(np.quantile(units, 0.9)), right


def _units_to_verdict(truth: Truth, random: Random) -> tuple[int, bool]:
    ours, theirs = truth.draw(random, _MOST_UNITS)
    metric, units = truth.gate.metric.name, 5
    while units < _MOST_UNITS:
        challenger, champion = (
            ArmTally(name, 0.5, units, units, samples={metric: Sample.of(values[:units])})
            for name, values in (("challenger", ours), ("champion", theirs))
        )
        state = answer(truth.gate, challenger, champion, ALPHA, ALPHA).state
        if state is not GateState.OPEN:
            return units, state is truth.expected
        units = math.ceil(units * 1.1)
    return _MOST_UNITS, False


def _randoms(runs: int, seed: int) -> Iterator[Random]:
    return map(np.random.default_rng, np.random.SeedSequence(seed).spawn(runs))


def _ever(fortunes: Floats) -> bool:
    return bool(fortunes.max() >= _ENOUGH)


def _coins(random: Random, share: float, units: int) -> Floats:
    return (random.random(units) < share).astype(float)


def _ratings(random: Random, units: int) -> Floats:
    return random.choice(np.arange(1.0, 6.0), units, p=_RATING)


def _lowered(ratings: Floats, random: Random, by: float) -> Floats:
    """Lower in the mean by `by`: some lose a point, and those at the bottom cannot."""
    chance = by / (1 - _RATING[0])
    return ratings - (random.random(len(ratings)) < chance) * (ratings > 1)


def _times(random: Random, units: int) -> Floats:
    return np.exp(random.normal(0, _SPREAD, units))


def _thumbs(random: Random, units: int) -> bool:
    pairs = Pairs(_coins(random, 0.75, units) - _coins(random, 0.8, units), 1)
    return _ever(pairs.evidence_above(-0.05))


def _thumbs_inferior(random: Random, units: int) -> bool:
    pairs = Pairs(_coins(random, 0.75, units) - _coins(random, 0.8, units), 1)
    return _ever(pairs.evidence_below(-0.05))


def _rare_thumbs(random: Random, units: int) -> bool:
    pairs = Pairs(_coins(random, 0.94, units) - _coins(random, 0.97, units), 1)
    return _ever(pairs.evidence_above(-0.03))


def _rating(random: Random, units: int) -> bool:
    ours = _lowered(_ratings(random, units), random, 0.1)
    return _ever(Pairs(ours - _ratings(random, units), 4).evidence_above(-0.1))


def _users(random: Random, users: int, lower: float) -> Floats:
    """A row of 10 ratings a user, who rates most answers alike."""
    likes = random.beta(2, 1, users) - lower
    return 1 + random.binomial(4, np.clip(likes, 0, 1)[:, None], (users, 10)).astype(float)


def _rating_by_user(random: Random, units: int) -> bool:
    ours, theirs = _two_groups_of_users(random, units // 10)
    return _ever(Pairs((ours - theirs).mean(axis=1), 4).evidence_above(-0.1))


def _naive(random: Random, units: int) -> bool:
    ours, theirs = _two_groups_of_users(random, units // 10)
    return _ever(Pairs((ours - theirs).ravel(), 4).evidence_above(-0.1))


def _two_groups_of_users(random: Random, users: int) -> tuple[Floats, Floats]:
    # Clipped at the bottom, the mean of Beta(2, 1) falls by c - c^3 / 3: here by 0.1 of 4 points.
    return _users(random, users, 0.025005), _users(random, users, 0.0)


def _errors(side: int) -> Run:
    def run(random: Random, units: int) -> bool:
        failed, count = np.cumsum(_coins(random, 0.01, units)), np.arange(1, units + 1, dtype=float)
        fortunes = ShareBet(0.01).fortune(failed, count, 0.01)
        on_side = (failed - 0.01 * count) * side > 0
        return _ever(np.where(on_side, fortunes, -math.inf))

    return run


def _below(random: Random, units: int) -> Floats:
    """Log fortunes at the true p95 of an arm: to be wrong about it, this must be refuted."""
    is_below = _times(random, units) <= math.exp(_SPREAD * ndtri(0.95))
    count = np.arange(1, units + 1, dtype=float)
    return ShareBet(0.95).fortune(np.cumsum(is_below.astype(float)), count, 0.95)


def _quantile(random: Random, units: int) -> bool:
    return _ever(_below(random, units))


def _quantile_ratio(random: Random, units: int) -> bool:
    return _ever(_below(random, units) + _below(random, units))


def _means(ratio: float, *, spikes: bool) -> Run:
    def run(random: Random, units: int) -> bool:
        return bool((_studentised(random, units, ratio, spikes=spikes) > _reaches(units)).any())

    return run


def _t_test(random: Random, units: int) -> bool:
    scores = _studentised(random, units, 1.0, spikes=False)
    count = np.arange(LEAST_UNITS, units + 1)
    return bool((scores * np.sqrt(count) > -ndtri(ALPHA)).any())


def _studentised(random: Random, units: int, ratio: float, *, spikes: bool) -> Floats:
    """Of (ratio x theirs - ours), mean over standard deviation, from the first unit that counts."""
    ours, theirs = ratio * _times(random, units), _times(random, units)
    if spikes:
        ours *= np.where(random.random(units) < 0.01, 10, 1)
        theirs *= np.where(random.random(units) < 0.01, 10, 1)
    gains = ratio * theirs - ours
    count = np.arange(1, units + 1, dtype=float)
    mean = np.cumsum(gains) / count
    variance = (np.cumsum(gains**2) - count * mean**2) / np.maximum(count - 1, 1)
    return (mean / np.sqrt(np.maximum(variance, 1e-12)))[LEAST_UNITS - 1 :]


@cache
def _reaches(units: int) -> Floats:
    return np.array([half_width(count, ALPHA) for count in range(LEAST_UNITS, units + 1)])


def _sample_ratio(random: Random, units: int) -> bool:
    count = np.arange(1, 2 * units + 1, dtype=float)
    off = np.cumsum(_coins(random, 0.5, 2 * units)) - count / 2
    p_values = chi2.sf(off[9:] ** 2 / (count[9:] / 4), 1)
    return bool((p_values < ALARM).any())


def _thumb_arms(more: float):
    return lambda random, units: (
        _coins(random, 0.8 + more, units),
        _coins(random, 0.8, units),
    )


def _rating_arms(lower: float):
    return lambda random, units: (
        np.maximum(1, _ratings(random, units) - lower),
        _ratings(random, units),
    )


def _error_arms(rate: float):
    return lambda random, units: (_coins(random, rate, units), _coins(random, 0.001, units))


def _time_arms(ratio: float):
    return lambda random, units: (ratio * _times(random, units), _times(random, units))


def tables(runs: int, units: int, power_runs: int) -> str:
    """Both, in Markdown."""
    lines = [
        f"Wrong verdicts of {runs} experiments of {units} units (pairs of them, where arms are "
        f"compared), asked after every one:",
        "",
        "| the truth | the wrong verdict | declared | measured |",
        "|---|---|---:|---:|",
    ]
    for null in nulls():
        declared = "-" if null.alpha is None else f"{null.alpha:.1%}"
        rate = wrong_rate(null, runs, units)
        lines.append(f"| {null.name} | {null.wrong} | {declared} | {rate:.1%} |")
    lines += [
        "",
        f"Units that an arm needs until a verdict, in {power_runs} experiments with arms of one "
        f"size, of {_MOST_UNITS} units at most:",
        "",
        "| gate | the truth | verdict | half are through at | nine of ten at | right |",
        "|---|---|---|---:|---:|---:|",
    ]
    for truth in truths():
        median, late, right = units_to_verdict(truth, power_runs)
        lines.append(
            f"| `{truth.gate}` | {truth.truth} | {truth.expected.lower()} | {median:.0f} | "
            f"{late:.0f} | {right:.0%} |"
        )
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Between the marks. Raises ValueError where the file has none."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END}; add them where the tables belong")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the statistics on made-up traffic.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a file with the two marks")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--power-runs", type=int, default=100)
    given = parser.parse_args()
    text = tables(given.runs, given.units, given.power_runs)
    if given.write is None:
        print(text)
    else:
        write(given.write, text)


if __name__ == "__main__":
    main()
