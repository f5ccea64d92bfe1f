"""How long a connection may do nothing, and how much it may send before it has asked for anything.

uvicorn waits for ever for the end of a request's head, reads headers without end, and holds what a
client does not read. Here each of these has a bound, so that connections which cost their owner
nothing cost the server as little. Bodies have theirs in `middleware`, where the caller is known.
"""

import asyncio
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from loragate.server.errors import ClientTooSlow, HeadersTooLarge
from loragate.server.http.failures import raw_response

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as UvicornProtocol
else:  # what uvicorn would take by itself: httptools, or h11 where that is not installed
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as UvicornProtocol

MOST_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Seconds for the head of a request and for a client to read; connections at once."""

    head_seconds: float
    write_seconds: float
    most_connections: int


def bounded_connections(bounds: ConnectionBounds) -> type[asyncio.Protocol]:
    """uvicorn's protocol with these bounds, for all connections of one server together."""
    waiting: dict[asyncio.BaseProtocol, None] = {}  # for a request; who waits longest is first
    most = min(bounds.most_connections, _most_files() // 2)

    class BoundedConnection(UvicornProtocol):
        """A connection has a request under way, or waits for the whole head of one.

        Waiting begins with the connection and with each answer's end, and what arrives meanwhile
        does not prolong it. Of a body that nobody read, the rest is dropped in the same time.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None
            self._is_in_head = False
            self._head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            if len(self.connections) > most:
                oldest = next(iter(waiting), self)
                cast("BoundedConnection", oldest).transport.close()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_wait()
            self._end_write_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._has_request:
                self._end_wait()
            elif self._head_timer is None:
                self._wait()
            if self._is_in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MOST_HEAD_BYTES:
                    self._refuse(
                        HeadersTooLarge(
                            f"The request's head is larger than {MOST_HEAD_BYTES} bytes; send "
                            "fewer or shorter headers."
                        )
                    )

        def on_message_begin(self) -> None:
            self._is_in_head = True
            self._head_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and not self._has_request:
                self._wait()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(bounds.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._end_write_timer()

        @property
        def _has_request(self) -> bool:
            cycle = self.cycle
            return bool(self.pipeline_length) or (cycle is not None and not cycle.response_complete)

        @property
        def pipeline_length(self) -> int:
            return len(getattr(self, "pipeline", ()))

        def _wait(self) -> None:
            self._end_wait()
            waiting[self] = None
            self._head_timer = self.loop.call_later(bounds.head_seconds, self._refuse_slow_head)

        def _end_wait(self) -> None:
            waiting.pop(self, None)
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _refuse_slow_head(self) -> None:
            if self._is_in_head:
                self._refuse(
                    ClientTooSlow(
                        f"The request's head did not come within {bounds.head_seconds:g} s."
                    )
                )
            else:
                self.transport.close()

        def _refuse(self, error: Exception) -> None:
            self.transport.write(raw_response(error))
            self.transport.close()

        def _end_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return BoundedConnection


def _most_files() -> int:
    """How many files and sockets the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else soft
