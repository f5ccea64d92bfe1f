"""Routes that ask who calls before any of the body is read.

FastAPI reads the whole body before it looks at a route's dependencies, so a dependency comes too
late to keep strangers from sending megabytes. A guard stands around the whole of a route instead:
what it refuses, nobody has read anything of.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from loragate.server.admission.admission import Arrival
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.http.json_bodies import BoundedJsonRoute
from loragate.server.wire.headers import KEY_HEADERS, one_key

Guard = Callable[[Request], AbstractContextManager[str]]


def guarded_by(guard: Guard, threads: FairThreads) -> type[BoundedJsonRoute]:
    """A route class whose routes run inside `guard`, from the headers to the answer's last byte.

    The guard gets the request without its body, raises where it lets nobody in, and may leave what
    it found in `request.state` for the route. It yields the tenant for whom a large body is
    read in `threads`. A body's time is bounded around `receive` (`middleware.BodyLimit`): it is
    awaited here, where a slow sender is known and holds nothing but its own connection.
    """

    class GuardedRoute(BoundedJsonRoute):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Around `app`, not in `get_route_handler`: that has ended when the answer is sent.
            self.app = _Guarded(guard, self.app)

    GuardedRoute.threads = threads
    return GuardedRoute


def sent_key(request: Request) -> str | None:
    """None where there is none. Raises Unauthenticated for two that differ."""
    return one_key((name, request.headers.getlist(name)) for name in KEY_HEADERS)


def arrival_of(request: Request) -> Arrival:
    """What the guard of the data plane's routes has left."""
    arrival: Arrival = request.state.arrival
    return arrival


class _Guarded:
    def __init__(self, guard: Guard, app: ASGIApp) -> None:
        self._guard = guard
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        with self._guard(request) as tenant:
            request.state.tenant = tenant
            await self._app(scope, receive, send)
