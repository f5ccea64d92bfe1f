from loragate.adapters.names import AdapterVersion
from loragate.server.core import Route
from loragate.server.metrics import Metrics
from loragate.server.usage import Record


def route(number: int) -> Route:
    return Route("acme", AdapterVersion("acme", "support", number, "d", number))


def ended(number: int, outcome: str = "ok") -> Record:
    record = Record("req-1", route(number), "http")
    record.prompt_tokens, record.completion_tokens, record.cached_tokens = 7, 3, 2
    record.ttft_seconds, record.itl_seconds = 0.02, [0.001, 0.002]
    record.close(outcome)
    return record


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_request_is_counted_under_its_tenant_and_adapter() -> None:
    metrics = Metrics(10)
    metrics.count(ended(1))
    metrics.count(ended(1, "cancelled"))
    by = {"tenant": "acme", "adapter": "acme/support@v1"}
    for outcome in ("ok", "cancelled"):
        labels = {**by, "transport": "http", "outcome": outcome}
        assert value(metrics, "loragate_requests_total", **labels) == 1
    assert value(metrics, "loragate_prompt_tokens_total", **by) == 14
    assert value(metrics, "loragate_cached_prompt_tokens_total", **by) == 4
    assert value(metrics, "loragate_completion_tokens_total", **by) == 6
    assert value(metrics, "loragate_time_to_first_token_seconds_count", **by) == 2
    assert value(metrics, "loragate_inter_token_seconds_count", **by) == 4
    assert value(metrics, "loragate_request_duration_seconds_count", **by) == 2


def test_a_request_that_got_no_token_adds_no_tokens_and_no_time_to_the_first() -> None:
    metrics = Metrics(10)
    record = Record("req-1", route(1), "grpc")
    record.prompt_tokens = 7
    record.close("overloaded")
    metrics.count(record)
    by = {"tenant": "acme", "adapter": "acme/support@v1"}
    assert not value(metrics, "loragate_prompt_tokens_total", **by)
    assert not value(metrics, "loragate_time_to_first_token_seconds_count", **by)
    assert value(metrics, "loragate_request_duration_seconds_count", **by) == 1


def test_adapters_past_the_cap_are_counted_together() -> None:
    metrics = Metrics(2)
    for number in range(1, 50):
        metrics.count(ended(number))
    metrics.count(ended(2))
    by = {"transport": "http", "outcome": "ok"}
    first = {"tenant": "acme", "adapter": "acme/support@v2", **by}
    assert value(metrics, "loragate_requests_total", **first) == 2
    other = {"tenant": "other", "adapter": "other", **by}
    assert value(metrics, "loragate_requests_total", **other) == 47
    assert metrics.text().decode().count("\nloragate_requests_total{") == 3


def test_requests_under_way_come_and_go() -> None:
    metrics = Metrics(10)
    by = {"tenant": "acme", "adapter": "acme/support@v1"}
    with metrics.under_way(route(1)), metrics.under_way(route(1)):
        assert value(metrics, "loragate_requests_in_flight", **by) == 2
    assert value(metrics, "loragate_requests_in_flight", **by) == 0


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
    one.count(ended(1))
    assert "acme/support" not in other.text().decode()
