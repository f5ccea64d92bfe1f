"""Threads for what grows with a client's input: tenants take turns, and small work never waits."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.errors import Overloaded

LARGE = True


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def begin(threads: FairThreads, tenant: str, gate: threading.Event) -> "asyncio.Task[bool]":
    return asyncio.create_task(threads.do(tenant, LARGE, gate.wait, 30))


async def test_small_work_is_done_at_once_and_large_work_in_another_thread() -> None:
    threads = FairThreads()
    here = threading.get_ident()
    assert await threads.do("acme", not LARGE, threading.get_ident) == here
    assert await threads.do("acme", LARGE, threading.get_ident) != here
    threads.close()


async def test_what_work_raises_reaches_whoever_asked() -> None:
    threads = FairThreads()
    for is_large in (False, True):
        with pytest.raises(ValueError, match="invalid literal"):
            await threads.do("acme", is_large, int, "no number")
    threads.close()


async def test_a_tenant_with_many_large_requests_leaves_a_thread_to_the_others(
    gate: threading.Event,
) -> None:
    threads = FairThreads(threads=2)
    held = [begin(threads, "acme", gate) for _ in range(10)]
    await asyncio.sleep(0)
    assert await threads.do("globex", LARGE, sum, [1, 2]) == 3
    assert not any(task.done() for task in held)
    gate.set()
    assert await asyncio.gather(*held) == [True] * 10
    threads.close()


async def test_tenants_that_wait_for_one_thread_take_turns(gate: threading.Event) -> None:
    threads = FairThreads(threads=1)
    order: list[str] = []
    first = begin(threads, "first", gate)
    await asyncio.sleep(0)
    work = [
        asyncio.create_task(threads.do(tenant, LARGE, partial(order.append, tenant)))
        for tenant in ("acme", "acme", "acme", "globex", "initech")
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *work)
    assert order == ["acme", "globex", "initech", "acme", "acme"]
    threads.close()


async def test_a_tenant_whose_requests_wait_already_is_told_to_come_again(
    gate: threading.Event,
) -> None:
    threads = FairThreads(threads=1, most_waiting=2)
    held = [begin(threads, "acme", gate) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 requests of this tenant wait"):
        await threads.do("acme", LARGE, int)
    other = begin(threads, "globex", gate)
    gate.set()
    assert await asyncio.gather(*held, other) == [True] * 4
    threads.close()


async def test_work_whose_caller_left_is_not_begun_and_one_that_runs_keeps_its_thread(
    gate: threading.Event,
) -> None:
    threads = FairThreads(threads=1)
    done: list[str] = []
    running = begin(threads, "acme", gate)
    await asyncio.sleep(0)
    left = asyncio.create_task(threads.do("globex", LARGE, partial(done.append, "left")))
    stays = asyncio.create_task(threads.do("globex", LARGE, partial(done.append, "stays")))
    await asyncio.sleep(0)
    running.cancel()
    left.cancel()
    await asyncio.gather(running, left, return_exceptions=True)
    assert done == []
    gate.set()
    await stays
    assert done == ["stays"]
    threads.close()
