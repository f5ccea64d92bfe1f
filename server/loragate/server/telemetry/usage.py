"""What each request used: counted on the way, kept in the registry's database."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.records import UsageRow, new_row_id
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import Delta, Route, Usage
from loragate.server.telemetry.batch_writer import BatchWriter
from loragate.server.wire.statuses import describe


class Record:
    """One request's meter. Times in seconds; `outcome` is `ok`, `cancelled` or an error code, and
    `is_fault` whether that error was the server's own.
    """

    def __init__(self, request_id: str, route: Route, transport: str) -> None:
        self.request_id = request_id
        self.route = route
        self.transport = transport
        self.at = wall_clock()
        self._row_id = new_row_id()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.reasoning_tokens = 0
        self.ttft_seconds: float | None = None
        self.duration_seconds = 0.0
        self.itl_seconds: list[float] = []
        self.outcome = "ok"
        self.is_fault = False
        self._started = time.perf_counter()

    @property
    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens
        )

    async def count(
        self,
        deltas: AsyncGenerator[Delta, None],
        on_tokens: Callable[[int], None] = lambda tokens: None,
    ) -> AsyncGenerator[Delta, None]:
        """Passes deltas on, counting tokens and timing the gaps between them.

        `on_tokens` gets each delta's number of tokens.
        """
        last = self._started
        try:
            async for delta in deltas:
                now = time.perf_counter()
                if delta.token_ids:
                    if self.ttft_seconds is None:
                        self.ttft_seconds = now - self._started
                    else:
                        self.itl_seconds.append(now - last)
                    last = now
                    self.completion_tokens += len(delta.token_ids)
                    on_tokens(len(delta.token_ids))
                self.cached_tokens += delta.cached_tokens
                self.reasoning_tokens += delta.reasoning_tokens
                yield delta
        finally:
            await deltas.aclose()

    def close(self, outcome: str, *, is_fault: bool = False) -> None:
        self.outcome = outcome
        self.is_fault = is_fault
        self.duration_seconds = time.perf_counter() - self._started

    def row(self) -> UsageRow:
        return UsageRow(
            request_id=self.request_id,
            at=self.at,
            tenant=self.route.tenant,
            adapter=self.route.adapter,
            digest=self.route.digest,
            transport=self.transport,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            ttft_seconds=self.ttft_seconds,
            duration_seconds=self.duration_seconds,
            outcome=self.outcome,
            row_id=self._row_id,
        )


class UsageStore(Protocol):
    """Where records are kept: the registry's `usage`. The call blocks. One record counts once,
    however often
    it is added; see `UsageRow.row_id`.
    """

    def add(self, records: Sequence[UsageRow]) -> None: ...


class UsageLog:
    """Keeps records off the request's path: a task writes them in batches, twice a second.

    `async with log.writing(background)` owns that task; leaving writes what is pending. A crash
    loses at most the records of the last half second.
    """

    def __init__(
        self,
        store: UsageStore,
        on_end: Callable[[Record], None] = lambda record: None,
        pool: Executor | None = None,
    ) -> None:
        """`on_end` gets each record once it is complete; the store is called in `pool`."""
        self._on_end = on_end
        self._writer = BatchWriter[UsageRow]("usage records", store.add, pool=pool)

    @contextmanager
    def record(
        self,
        request_id: str,
        route: Route,
        transport: str,
        on_end: Callable[[Record], None] = lambda record: None,
    ) -> Iterator[Record]:
        """Meters one request, however it ends; `on_end` gets this one alone."""
        record = Record(request_id, route, transport)
        try:
            yield record
        except (asyncio.CancelledError, GeneratorExit):
            record.close("cancelled")
            raise
        except Exception as error:
            failure = describe(error)
            record.close(failure.code, is_fault=failure.status.http_status >= 500)
            raise
        else:
            record.close("ok")
        finally:
            on_end(record)
            self._on_end(record)
            self._writer.add(record.row())

    async def flush(self) -> None:
        """Writes what is pending now. Raises what the store raises; then it stays pending."""
        await self._writer.flush()

    @asynccontextmanager
    async def writing(self, background: BackgroundTasks) -> AsyncIterator["UsageLog"]:
        """Owns the task that writes."""
        async with self._writer.writing(background):
            yield self
