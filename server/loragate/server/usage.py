"""What each request used: counted on the way, kept in the registry's database."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Protocol

from loragate.adapters.errors import StoreError
from loragate.adapters.records import UsageRow
from loragate.server.core import Delta, Route, Usage
from loragate.server.errors import describe

logger = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.5
_MOST_PENDING = 100_000


class Record:
    """One request's meter. Times in seconds; `outcome` is `ok`, `cancelled` or an error code."""

    def __init__(self, request_id: str, route: Route, transport: str) -> None:
        self.request_id = request_id
        self.route = route
        self.transport = transport
        self.at = datetime.now(UTC)
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.ttft_seconds: float | None = None
        self.duration_seconds = 0.0
        self.itl_seconds: list[float] = []
        self.outcome = "ok"
        self._started = time.perf_counter()

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens)

    async def count(
        self,
        deltas: AsyncGenerator[Delta, None],
        on_tokens: Callable[[int], None] = lambda tokens: None,
    ) -> AsyncGenerator[Delta, None]:
        """Passes deltas on, counting tokens and timing the gaps between them.

        `on_tokens` hears of each delta's number of tokens.
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
                yield delta
        finally:
            await deltas.aclose()

    def close(self, outcome: str) -> None:
        self.outcome = outcome
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
        )


class Ledger(Protocol):
    """Where records are kept: the registry. The call blocks; it may raise StoreError."""

    def add_usage(self, records: Sequence[UsageRow]) -> None: ...


class UsageLog:
    """Keeps records off the request's path: a task writes them in batches, twice a second.

    Construct it with `async with`; leaving writes what is pending. A crash loses at most the
    records of the last half second.
    """

    def __init__(
        self, ledger: Ledger, on_end: Callable[[Record], None] = lambda record: None
    ) -> None:
        """`on_end` hears of each record once it is complete."""
        self._ledger = ledger
        self._on_end = on_end
        self._pending: list[UsageRow] = []

    @contextmanager
    def record(self, request_id: str, route: Route, transport: str) -> Iterator[Record]:
        """Meters one request, however it ends."""
        record = Record(request_id, route, transport)
        try:
            yield record
        except (asyncio.CancelledError, GeneratorExit):
            self._keep(record, "cancelled")
            raise
        except Exception as error:
            self._keep(record, describe(error).code)
            raise
        else:
            self._keep(record, "ok")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator["UsageLog"]:
        """Owns the task that writes."""
        task = asyncio.create_task(self._write_forever(), name="usage log")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._write()

    def _keep(self, record: Record, outcome: str) -> None:
        record.close(outcome)
        self._on_end(record)
        if len(self._pending) < _MOST_PENDING:
            self._pending.append(record.row())
        else:
            logger.error(
                "usage record dropped, too many pending", extra={"request_id": record.request_id}
            )

    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self._write()

    async def _write(self) -> None:
        rows: Sequence[UsageRow] = self._pending
        if not rows:
            return
        self._pending = []
        writing = asyncio.create_task(asyncio.to_thread(self._ledger.add_usage, rows))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread goes on all the same; left alone, its batch could be lost unnoticed.
            await asyncio.wait([writing])
            if writing.exception() is not None:
                self._pending = [*rows, *self._pending]
            raise
        except StoreError:
            logger.exception("usage records could not be written, trying again")
            self._pending = [*rows, *self._pending]
