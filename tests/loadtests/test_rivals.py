"""The table of many servers, what the machine allows at best, and how tokens are counted."""

import asyncio
import json
from pathlib import Path

import pytest

from bench import streams
from bench.comparison import BEST, LOUD, QUIET, RESTART, STALL, Comparison
from bench.limits import Limits
from bench.measures import Case

SPEED, READY = "tokens/s: base", "time to ready, s"


def filled(comparison: Comparison) -> Comparison:
    figures = {
        BEST: {SPEED: [100.0], READY: [0.01], QUIET: [1.0], LOUD: [1.0], STALL: [1.0]},
        "loragate": {SPEED: [60.0, 80.0, 70.0], READY: [10.0], STALL: [1.2]},
        "vllm-bfloat16": {SPEED: [20.0], READY: [40.0], QUIET: [50.0], LOUD: [100.0], STALL: [2.0]},
        "vllm-float32": {SPEED: [35.0], READY: [50.0], QUIET: [100.0], LOUD: [150.0], STALL: [1.5]},
        "llama.cpp": {SPEED: [140.0], RESTART: [3.0]},
    }
    for server, results in figures.items():
        for measure, values in results.items():
            comparison.of(server)[measure] += values
    return comparison


def rows(comparison: Comparison) -> dict[str, list[str]]:
    lines = [line for line in comparison.table().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells[2:]}


def test_each_row_has_medians_the_better_stock_dtype_and_ratios_to_both() -> None:
    assert rows(filled(Comparison("here")))[SPEED] == [
        "100", "70.0 (60.0 to 80.0)", "35.0 (35.0 to 35.0) float32", "140 (140 to 140)",
        "2.00", "0.50",
    ]  # fmt: skip


def test_what_takes_time_is_better_where_it_is_less_and_what_was_not_measured_is_a_dash() -> None:
    row = rows(filled(Comparison("here")))[READY]
    assert row[2:] == ["40.0 (40.0 to 40.0) bfloat16", "–", "0.25", "–"]  # noqa: RUF001


def test_a_server_that_cannot_load_at_run_time_needs_a_restart() -> None:
    row = rows(filled(Comparison("here")))[STALL]
    assert row[3] == "needs a restart: 3.00 (3.00 to 3.00) s"


def test_a_ratio_is_that_of_the_dtype_that_stalls_for_the_shortest() -> None:
    shown = rows(filled(Comparison("here")))
    assert [shown[measure][2].split()[0::4] for measure in (QUIET, LOUD, STALL)] == [
        ["50.0", "bfloat16"],
        ["100", "bfloat16"],
        ["2.00", "bfloat16"],
    ]


def test_a_later_run_joins_what_an_earlier_one_has_kept(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    filled(Comparison.open(path, "here")).keep()
    joined = Comparison.open(path, "here")
    joined.of("loragate")[SPEED] += [90.0]
    joined.of("loragate")["new"] += [1.0]
    joined.keep()
    assert json.loads(path.read_text())["results"]["loragate"][SPEED] == [60.0, 80.0, 70.0, 90.0]


def test_figures_of_another_machine_or_version_are_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    filled(Comparison.open(path, "here")).keep()
    with pytest.raises(SystemExit, match="name another file"):
        Comparison.open(path, "elsewhere")


def limits(multiplies: float) -> Limits:
    return Limits(
        weights=1_000, vocabulary=400, bytes_per_weight=2, adapter_bytes=100, token_bytes=0,
        reads=10_000, multiplies=multiplies,
    )  # fmt: skip


def test_a_step_takes_as_long_as_reading_the_weights_once_and_each_adapter() -> None:
    case = Case(5, 10)
    at_best = limits(multiplies=1e9).of_case(case)
    assert at_best[case.between_tokens] == pytest.approx(250)  # (2000 + 500) / 10000 s
    assert at_best[case.speed] == pytest.approx(40)


def test_a_step_of_many_streams_takes_as_long_as_the_operations() -> None:
    case = Case(0, 10, prompt_tokens=100)
    at_best = limits(multiplies=40_000).of_case(case)
    assert at_best[case.speed] == pytest.approx(20)  # 10 streams, 2 * 10 * 1000 / 40000 s
    # Half of the prompts, without the vocabulary: 2 * 500 * 600 / 40000 s.
    assert at_best[case.first_token] == pytest.approx(15)


async def read(*events: object) -> streams.Stream:
    reader, answer = asyncio.StreamReader(), streams.Stream(0.0)
    reader.feed_data(b"HTTP/1.1 200 OK\r\n\r\n")
    for event in events:
        reader.feed_data(b"data: " + json.dumps(event).encode() + b"\r\n\r\n")
    reader.feed_eof()
    await streams._read(reader, answer)
    return answer


async def test_tokens_are_counted_by_the_server_and_its_last_event_is_none_of_them() -> None:
    token = {"choices": [{"text": "a", "finish_reason": None}], "usage": None}
    usage = {"completion_tokens": 3}
    of_vllm = await read(token, token, token, {"choices": [], "usage": usage})
    last = {"choices": [{"text": "", "finish_reason": "length"}], "usage": usage}
    of_llama_cpp = await read(token, token, last)  # one was part of a character
    assert [(len(each.arrivals), each.tokens) for each in (of_vllm, of_llama_cpp)] == [
        (3, 3),
        (2, 3),
    ]
