"""A deadline ends what runs too long, and answers for nobody's time but its own."""

import asyncio

import pytest

from loragate.server.admission.deadlines import Deadlines
from loragate.server.errors import DeadlineExceeded, Draining


async def test_what_runs_too_long_is_ended() -> None:
    with pytest.raises(DeadlineExceeded):
        async with Deadlines(0.01).deadline():
            await asyncio.Event().wait()


async def test_a_timeout_of_what_runs_is_no_word_of_the_deadline() -> None:
    with pytest.raises(TimeoutError, match="the database"):
        async with Deadlines(60).deadline():
            raise TimeoutError("the database did not answer")


async def test_what_is_cut_off_is_told_that_the_server_stops() -> None:
    deadlines = Deadlines(60)
    asyncio.get_running_loop().call_soon(deadlines.cut_off)
    with pytest.raises(Draining):
        async with deadlines.deadline():
            await asyncio.Event().wait()
