"""What both transports ask: one object for each kind of request that a tenant sends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from loragate.server.admission.admission import Arrival
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.experiments.feedback import FeedbackService
from loragate.server.gateway.arrivals import Arrivals
from loragate.server.gateway.gateway import Gateway
from loragate.server.gateway.routing import ModelCard, Router

Viewed = TypeVar("Viewed")


class Models:
    """The models that a tenant can use."""

    def __init__(self, router: Router, threads: FairThreads) -> None:
        self._router = router
        self._threads = threads

    async def view(
        self, arrival: Arrival, make_view: Callable[[Sequence[ModelCard]], Viewed]
    ) -> Viewed:
        """What `make_view` makes of all of them.

        The shape of such a list knows no parts: it grows with the tenant's adapters, and ten
        thousand take a quarter of a second. So a long one is made in the tenant's turn in the
        threads. Raises Overloaded where too many of its requests wait for that.
        """

        def make() -> Viewed:
            return make_view(self._router.models(arrival.tenant))

        is_long = self._router.has_many_models(arrival.tenant)
        return await self._threads.do(arrival.tenant, is_long, make)

    def get(self, model: str, arrival: Arrival) -> ModelCard:
        """Raises ModelNotFound."""
        return self._router.get_model(arrival.tenant, model)


@dataclass(frozen=True, slots=True)
class TenantServices:
    """A request arrives by `arrivals`, and then asks one of the others."""

    arrivals: Arrivals
    gateway: Gateway
    models: Models
    feedback: FeedbackService
