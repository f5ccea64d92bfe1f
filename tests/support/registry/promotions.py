"""What a server does to let a version serve, done to the registry by hand."""

from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import AdapterState, Registry


def make_ready(registry: Registry, version: AdapterVersion) -> AdapterVersion:
    for state in (AdapterState.LOADING, AdapterState.READY):
        registry.states.set(version, state, "server")
    return version


def let_serve(registry: Registry, adapter: AdapterName, alias: str, number: int) -> AdapterVersion:
    """Promote, load, check and serve."""
    version = registry.aliases.set(adapter, alias, number)
    if registry.snapshot().state(version) is AdapterState.PUBLISHED:
        make_ready(registry, version)
    return registry.aliases.set_serving(adapter, alias, number, "server")
