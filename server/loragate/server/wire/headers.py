"""Names of headers and trailers, the same over HTTP and gRPC."""

from collections.abc import Iterable, Sequence
from typing import Final

from loragate.server.core import Route
from loragate.server.errors import Unauthenticated

REQUEST_ID: Final = "x-request-id"
CONVERSATION: Final = "x-conversation-id"
TENANT: Final = "x-loragate-tenant"  # gRPC's; over HTTP the path names the tenant
ADAPTER: Final = "x-loragate-adapter"
MODE: Final = "x-loragate-mode"
KEY_HEADERS: Final = ("authorization", "x-api-key", "api-key")


def one_key(sent: Iterable[tuple[str, Sequence[str]]]) -> str | None:
    """The key that the headers of a request bring, each by its name and values; None where they
    bring none. Raises Unauthenticated where they bring several: whose it is must not depend on
    which is looked at.
    """
    keys: dict[str, str] = {}
    for name, values in sent:
        for value in values:
            key = _bearer(value) if name == "authorization" else value.strip()
            if key:
                keys.setdefault(key, name)
    if len(keys) > 1:
        raise Unauthenticated(
            f"Two different keys were sent, in {' and '.join(dict.fromkeys(keys.values()))}; send "
            "one."
        )
    return next(iter(keys), None)


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def provenance_of(route: Route) -> tuple[tuple[str, str], ...]:
    """What every answer says of itself: names and values."""
    said = (
        (MODE, "" if route.version is None else route.mode),
        ("x-loragate-experiment", route.experiment),
        ("x-loragate-arm", route.arm),
        ("x-loragate-unit", route.unit),
        ("x-loragate-fallback", route.fallback),
    )
    return (
        (ADAPTER, route.adapter),
        ("x-loragate-digest", route.digest),
        *(header for header in said if header[1]),
    )
