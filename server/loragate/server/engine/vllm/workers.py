"""The core's workers as the server calls them: one on a CPU, one for each GPU on CUDA."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

_LOOK_AGAIN_SECONDS = 0.005
CallAll = Callable[..., Awaitable[list[Any]]]
"""vLLM's `collective_rpc`: runs a method in every worker, between two steps; answers in order."""


class WorkerFault(Exception):
    """A worker could not do what it was asked for; the message is what it met."""


class Workers:
    """Calls what `lora_staging.AdapterStaging` adds to each worker. Raises WorkerFault for what
    they meet, and what vLLM raises where there is no core any more.
    """

    def __init__(self, call_all: CallAll) -> None:
        self._call_all = call_all

    async def place(self, lora_id: int, ready: Path) -> None:
        """Puts the adapter of that ready file into a slot of each worker. Whoever is cancelled here
        leaves no slot behind that is half written and kept.
        """
        try:
            await self._call("stage_adapter", lora_id, str(ready))
            # The engine answers between two steps, so each call is a part in another one. Each
            # worker reads for itself and may be done some calls before another.
            while not all(answers := await self._call("add_staged_adapter", lora_id)):
                if False not in answers:  # what is being read tells nobody that it ends
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        except (asyncio.CancelledError, WorkerFault):
            await asyncio.shield(self._call("give_up_staged_adapter", lora_id))
            raise

    async def check_slot(self) -> list[str]:
        """What is wrong in the next slot, in any worker."""
        return [fault for faults in await self._call("check_slot") for fault in faults]

    async def _call(self, method: str, *arguments: str | int) -> list[Any]:
        answers = await self._call_all(method, args=arguments)
        for answer in answers:
            if isinstance(answer, str):
                raise WorkerFault(answer)
        return answers
