"""Names of headers and trailers, the same over HTTP and gRPC."""

from typing import Final

from loragate.server.core import Route

REQUEST_ID: Final = "x-request-id"
CONVERSATION: Final = "x-conversation-id"
TENANT: Final = "x-loragate-tenant"  # gRPC's; over HTTP the path names the tenant
ADAPTER: Final = "x-loragate-adapter"
MODE: Final = "x-loragate-mode"


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
