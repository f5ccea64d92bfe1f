"""Who may come in: a request's key, its tenant's limits, and whether the server takes any."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from loragate.adapters.registry.snapshot import Limits, SnapshotWatcher
from loragate.server.admission.admission import Admission, Arrival
from loragate.server.core import Caller
from loragate.server.errors import Draining, RateLimited
from loragate.server.gateway.auth import Authenticator
from loragate.server.telemetry.metrics import Metrics
from loragate.server.wire.statuses import describe


class Arrivals:
    """The first step of every request, whatever it is for."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: SnapshotWatcher,
        admission: Admission,
        default_limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._admission = admission
        self._default_limits = default_limits
        self._metrics = metrics

    @contextmanager
    def arrive(self, caller: Caller) -> Iterator[Arrival]:
        """Lets a request in by what its headers say, and counts it until the context is left.

        A transport enters this before it reads a body or decodes a message, and leaves it when the
        last byte of the answer is out: what is not let in has cost nothing. Whatever goes wrong
        later, a bad body too, the request has been counted.

        Raises Unauthenticated, PermissionDenied, ModelNotFound, RateLimited or Draining.
        """
        tenant = self._authenticator.authenticate(caller.api_key, caller.tenant)
        with ExitStack() as stack:
            arriving = self._admission.arrive(caller, tenant, self._limits(tenant))
            try:
                arrival = stack.enter_context(arriving)
            except (RateLimited, Draining) as error:
                self._metrics.refuse(caller.transport, describe(error).code)
                raise
            yield arrival

    def _limits(self, tenant: str) -> Limits:
        own, default = self._registry.current.limits(tenant), self._default_limits
        return Limits(
            _first(own.requests_per_minute, default.requests_per_minute),
            _first(own.tokens_per_minute, default.tokens_per_minute),
            _first(own.max_concurrent, default.max_concurrent),
        )


def _first(own: int | None, default: int | None) -> int | None:
    return default if own is None else own
