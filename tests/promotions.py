"""What a server does to let a version serve, done to the registry by hand."""

from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import AdapterState, Registry


def make_ready(registry: Registry, version: AdapterVersion) -> AdapterVersion:
    for state in (AdapterState.LOADING, AdapterState.READY):
        registry.set_state(version, state, "server")
    return version


def let_serve(registry: Registry, adapter: AdapterName, alias: str, number: int) -> AdapterVersion:
    """Promote, load, check and serve."""
    version = registry.set_alias(adapter, alias, number)
    if registry.snapshot().state(version) is AdapterState.PUBLISHED:
        make_ready(registry, version)
    return registry.set_serving(adapter, alias, number, "server")
