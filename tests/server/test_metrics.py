import asyncio
import math
from collections import Counter

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.listings import AdapterSnapshot, AliasVersions, VersionEntry
from loragate.adapters.registry.snapshot import Limits, Snapshot, TenantEntry
from loragate.adapters.registry.states import AdapterState
from loragate.server.core import Route
from loragate.server.telemetry.metrics import Metrics
from loragate.server.telemetry.usage import Record

SUPPORT = {"tenant": "acme", "adapter": "acme/support"}
OTHER = {"tenant": "other", "adapter": "other"}
COUNTED = (
    b"loragate_requests_total",
    b"loragate_prompt_tokens_total",
    b"loragate_inter_token_seconds_count",
)
OK = {"transport": "http", "outcome": "ok"}


def route(number: int = 1, name: str = "support") -> Route:
    return Route("acme", AdapterVersion("acme", name, number, "d", number))


def ended(route: Route, outcome: str = "ok", transport: str = "http") -> Record:
    record = Record("req-1", route, transport)
    record.prompt_tokens, record.completion_tokens, record.cached_tokens = 7, 3, 2
    record.ttft_seconds, record.itl_seconds = 0.02, [0.001, 0.002]
    record.close(outcome)
    return record


def samples(text: bytes) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """As Prometheus reads the text: values by name and labels."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            by_labels = found.setdefault(sample.name, {})
            assert labels not in by_labels
            by_labels[labels] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics.text()).get(name, {}).get(frozenset(labels.items()))


def test_a_request_is_counted_under_its_tenant_and_adapter() -> None:
    metrics = Metrics(10)
    metrics.count(ended(route()))
    metrics.count(ended(route(), "cancelled"))
    for outcome in ("ok", "cancelled"):
        labels = {**SUPPORT, "transport": "http", "outcome": outcome}
        assert value(metrics, "loragate_requests_total", **labels) == 1
    assert value(metrics, "loragate_prompt_tokens_total", **SUPPORT) == 14
    assert value(metrics, "loragate_cached_prompt_tokens_total", **SUPPORT) == 4
    assert value(metrics, "loragate_completion_tokens_total", **SUPPORT) == 6
    assert value(metrics, "loragate_time_to_first_token_seconds_count", **SUPPORT) == 2
    assert value(metrics, "loragate_inter_token_seconds_count", **SUPPORT) == 4
    assert value(metrics, "loragate_request_duration_seconds_count", **SUPPORT) == 2


def test_a_promotion_begins_no_new_series() -> None:
    metrics = Metrics(1000)
    for number in range(1, 2001):
        metrics.count(ended(route(number)))
    assert value(metrics, "loragate_requests_total", **SUPPORT, **OK) == 2000
    assert len(samples(metrics.text())["loragate_requests_total"]) == 1


def test_the_base_model_and_a_merged_model_have_series_of_their_own() -> None:
    metrics = Metrics(10)
    merged = Route("acme", AdapterVersion("acme", "support", 3, "d", 3), "merged")
    metrics.count(ended(merged))
    metrics.count(ended(Route("acme")))
    for adapter in ("acme/support+merged", "base"):
        labels = {"tenant": "acme", "adapter": adapter}
        assert value(metrics, "loragate_requests_total", **labels, **OK) == 1


def test_a_request_that_got_no_token_adds_no_tokens_and_no_time_to_the_first() -> None:
    metrics = Metrics(10)
    record = Record("req-1", route(), "grpc")
    record.prompt_tokens = 7
    record.close("overloaded")
    metrics.count(record)
    assert not value(metrics, "loragate_prompt_tokens_total", **SUPPORT)
    assert not value(metrics, "loragate_time_to_first_token_seconds_count", **SUPPORT)
    assert value(metrics, "loragate_request_duration_seconds_count", **SUPPORT) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.1, 1, 59.9, 60, 61, 1e9])
def test_a_histogram_reads_as_the_client_librarys_would(seconds: float) -> None:
    metrics = Metrics(10)
    record = ended(route())
    record.ttft_seconds = seconds
    metrics.count(record)
    buckets = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
    theirs = prometheus_client.CollectorRegistry()
    name = "loragate_time_to_first_token_seconds"
    histogram = prometheus_client.Histogram(
        name, "", tuple(SUPPORT), buckets=buckets, registry=theirs
    )
    histogram.labels(**SUPPORT).observe(seconds)

    ours, expected = samples(metrics.text()), samples(prometheus_client.generate_latest(theirs))

    for part in ("bucket", "count", "sum"):
        assert ours[f"{name}_{part}"] == expected[f"{name}_{part}"]


def test_the_adapter_used_longest_ago_makes_room_for_a_new_one() -> None:
    metrics = Metrics(2)
    for name in ("one", "two", "one", "three"):
        metrics.count(ended(route(name=name)))
        metrics.text()
    shown = {
        dict(labels)["adapter"] for labels in samples(metrics.text())["loragate_requests_total"]
    }
    assert shown == {"acme/one", "acme/three"}


def test_what_no_scrape_had_seen_of_one_that_made_room_is_counted_under_other() -> None:
    metrics = Metrics(1)
    metrics.count(ended(route(name="one")))
    metrics.text()
    metrics.count(ended(route(name="one")))
    metrics.count(ended(route(name="two")))
    assert value(metrics, "loragate_requests_total", **OTHER, **OK) == 1
    assert value(metrics, "loragate_inter_token_seconds_count", **OTHER) == 2
    two = {"tenant": "acme", "adapter": "acme/two"}
    assert value(metrics, "loragate_requests_total", **two, **OK) == 1


def test_one_with_requests_under_way_makes_no_room() -> None:
    metrics = Metrics(1)
    with metrics.under_way(route(name="one")):
        with metrics.under_way(route(name="two")):
            assert value(metrics, "loragate_requests_in_flight", **OTHER) == 1
        metrics.count(ended(route(name="two")))
        one = {"tenant": "acme", "adapter": "acme/one"}
        assert value(metrics, "loragate_requests_in_flight", **one) == 1
    assert value(metrics, "loragate_requests_in_flight", **one) == 0
    assert value(metrics, "loragate_requests_total", **OTHER, **OK) == 1


def test_without_room_for_any_adapter_all_are_counted_together() -> None:
    metrics = Metrics(0)
    for name in ("one", "two"):
        metrics.count(ended(route(name=name)))
    assert value(metrics, "loragate_requests_total", **OTHER, **OK) == 2


class Scraper:
    """Adds up how counters grow from one scrape to the next, as Prometheus's `increase` does."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.grown: Counter[str] = Counter()

    def read(self, text: bytes) -> None:
        lines = (line for line in text.splitlines(keepends=True) if line.startswith(COUNTED))
        found = {
            (name, labels): number
            for name, by_labels in samples(b"".join(lines)).items()
            for labels, number in by_labels.items()
        }
        for key, number in found.items():
            before = self.seen.get(key, 0)
            self.grown[key[0]] += int(number - before if number >= before else number)
        self.seen = found


@given(
    st.integers(0, 4),
    st.lists(st.one_of(st.integers(0, 6), st.just("scrape")), max_size=40),
)
@settings(max_examples=40, deadline=None)
def test_however_many_adapters_come_and_go_each_request_is_seen_once(
    most: int, events: list[int | str]
) -> None:
    metrics, scraper = Metrics(most), Scraper()
    for event in events:
        if isinstance(event, int):
            metrics.count(ended(route(name=f"a{event}"), "ok" if event % 2 else "cancelled"))
        else:
            scraper.read(metrics.text())
    scraper.read(metrics.text())
    requests = sum(isinstance(event, int) for event in events)
    assert scraper.grown["loragate_requests_total"] == requests
    assert scraper.grown["loragate_prompt_tokens_total"] == 7 * requests
    assert scraper.grown["loragate_inter_token_seconds_count"] == 2 * requests


async def test_each_request_is_seen_once_though_adapters_make_room_in_the_middle_of_a_scrape() -> (
    None
):
    metrics, scraper = Metrics(300), Scraper()
    for number in range(300):
        metrics.count(ended(route(name=f"a{number}")))
    scrape = asyncio.create_task(metrics.scrape())
    counted = 300
    while not scrape.done():
        await asyncio.sleep(0)
        for number in range(counted, counted + 20):
            metrics.count(ended(route(name=f"a{number}")))
        counted += 20
    scraper.read(b"".join(await scrape))
    scraper.read(metrics.text())
    assert scraper.grown["loragate_requests_total"] == counted
    assert counted > 320  # the scrape let others have their turn


async def test_a_scrape_is_made_once_for_all_who_ask_meanwhile() -> None:
    metrics = Metrics(10)
    metrics.count(ended(route()))
    one, other = await asyncio.gather(metrics.scrape(), metrics.scrape())
    assert one is other
    assert b"".join(one) == metrics.text()
    assert await metrics.scrape() is not one


async def test_who_leaves_during_a_scrape_takes_it_from_nobody() -> None:
    metrics = Metrics(1000)
    for number in range(1000):
        metrics.count(ended(route(name=f"a{number}")))
    leaving, staying = (asyncio.create_task(metrics.scrape()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert b"loragate_requests_total" in b"".join(await staying)


def test_labels_are_escaped_as_the_format_wants() -> None:
    metrics = Metrics(10)
    odd = 'a"b\\c\nd%d%s'
    metrics.count(ended(Route(odd), odd))
    labels = {"tenant": odd, "adapter": "base", "transport": "http", "outcome": odd}
    assert value(metrics, "loragate_requests_total", **labels) == 1
    total = value(metrics, "loragate_request_duration_seconds_sum", tenant=odd, adapter="base")
    assert total is not None
    assert math.isfinite(total)


def snapshot(serving: int, aliases: int = 1, mode: str = "unmerged") -> Snapshot:
    entries = {
        number: VersionEntry(
            AdapterVersion("acme", "support", number, "d", number),
            AdapterState.READY,
            "",
            False,
            AdapterManifest(rank=2, alpha=4, target_modules=("q_proj",)),
        )
        for number in (1, 2)
    }
    serves = entries[serving].version
    means = AliasVersions(serves, serves, "merged" if mode == "merged" else "unmerged")
    means = AliasVersions(serves, serves, means.desired_mode, means.desired_mode)
    names = ["champion", *(f"a{number}" for number in range(aliases - 1))]
    adapter = AdapterSnapshot.of("acme", "support", entries, dict.fromkeys(names, means))
    return Snapshot().renewed(serving, {"acme": TenantEntry(Limits(), ())}, [adapter])


def test_which_version_serves_is_told_apart_from_the_figures() -> None:
    metrics, current = Metrics(10), [snapshot(1)]
    metrics.follow(lambda: current[0])
    metrics.count(ended(route()))
    named = {**SUPPORT, "alias": "champion"}
    assert value(metrics, "loragate_adapter_info", **named, version="v1") == 1
    current[0] = snapshot(2)
    assert value(metrics, "loragate_adapter_info", **named, version="v2") == 1
    assert value(metrics, "loragate_adapter_info", **named, version="v1") is None


def test_an_alias_that_serves_merged_is_told_beside_the_merged_models_figures() -> None:
    metrics, current = Metrics(10), snapshot(1, mode="merged")
    metrics.follow(lambda: current)
    metrics.count(ended(route()))
    metrics.count(ended(Route("acme", route().version, "merged")))
    info = samples(metrics.text())["loragate_adapter_info"]
    assert [dict(labels)["adapter"] for labels in info] == ["acme/support+merged"]


def test_of_an_adapter_with_many_aliases_a_few_are_told_the_champion_among_them() -> None:
    metrics, current = Metrics(10), snapshot(1, aliases=200)
    metrics.follow(lambda: current)
    metrics.count(ended(route()))
    aliases = [dict(labels)["alias"] for labels in samples(metrics.text())["loragate_adapter_info"]]
    assert len(aliases) == 10
    assert "champion" in aliases


def test_a_gauge_is_read_when_it_is_asked_for() -> None:
    metrics = Metrics(10)
    queue: list[int] = []
    metrics.gauge("loragate_queue", "Waiting.", lambda: len(queue))
    queue.append(1)
    assert value(metrics, "loragate_queue") == 1


def test_loads_are_timed() -> None:
    metrics = Metrics(10)
    metrics.adapter_loaded(AdapterVersion("acme", "support", 1, "d", 1), 0.3)
    assert value(metrics, "loragate_adapter_load_seconds_sum") == 0.3


def test_two_servers_in_one_process_do_not_share_counters() -> None:
    one, other = Metrics(10), Metrics(10)
    one.count(ended(route()))
    assert "acme/support" not in other.text().decode()
