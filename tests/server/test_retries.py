from loragate.server.concurrency.retries import Backoff, Retries
from support.clock import Clock


def test_each_waits_twice_as_long_after_each_failure_and_up_to_the_most() -> None:
    retries = Retries[str](Backoff(first=1.0, most=5.0), Clock())

    assert [retries.failed("a") for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    assert retries.failed("b") == 1.0
    retries.forget("a")
    assert retries.is_due("a")
    assert retries.failed("a") == 1.0


def test_next_is_told_by_the_clock_and_what_is_being_tried_is_not_due() -> None:
    clock = Clock()
    retries = Retries[str](Backoff(first=4.0, most=8.0), clock)
    assert retries.next_seconds is None
    retries.failed("a")
    retries.postpone("b", 1.0)
    assert retries.next_seconds == 1.0

    clock.now += 1.5
    assert (retries.is_due("a"), retries.is_due("b")) == (False, True)
    assert retries.next_seconds == 0.0
    retries.begin("b")
    retries.begin("nobody knows it")
    assert retries.next_seconds == 2.5
    retries.begin("a")
    assert retries.next_seconds is None

    assert retries.failed("a") == 8.0
    retries.keep({"a"})
    assert retries.next_seconds == 8.0
