"""The registry as the trainer uses it: to publish to, and to take versions from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import AliasNotFound, VersionNotFound
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.publish_check import StaticGate
from loragate.adapters.home import Home
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion, looks_like_version
from loragate.adapters.registry.registry import Registry
from loragate.adapters.settings import read_settings
from loragate.adapters.store import ArtifactStore


@contextmanager
def open_registry(home: Home, base: BaseModel | None = None) -> Iterator[Registry]:
    """The one that a server started here would serve from. With `base`, what is published must fit
    that server. Raises ConfigError.
    """
    settings = read_settings()
    url = settings.database_url(home.ensure())
    gate = None
    if base is not None:
        profile = BaseProfile.read(base, settings.read_template())
        gate = StaticGate(profile, settings.max_lora_rank)
    with Registry(url, ArtifactStore(home.artifacts), gate) as registry:
        yield registry


def require_tenant(home: Home, adapter: str) -> None:
    """Raises InvalidName where that is no adapter's name, and TenantNotFound."""
    tenant = AdapterName.parse(adapter).tenant
    with open_registry(home) as registry:
        registry.tenant(tenant)


def find_version(registry: Registry, text: str) -> AdapterVersion:
    """Of `acme/support@v3`, of an alias as in `acme/support@challenger`, or of `acme/support` its
    champion; an alias means what it is to point to. Raises InvalidName, TenantNotFound,
    AdapterNotFound, VersionNotFound and AliasNotFound.
    """
    name, _, wanted = text.partition("@")
    adapter = AdapterName.parse(name)
    page = registry.show(adapter)
    if looks_like_version(wanted):
        found = [each.version for each in page.versions if each.version.version == wanted]
        if not found:
            raise VersionNotFound(adapter.tenant, adapter.name, wanted)
        return found[0]
    alias = page.aliases.get(wanted or CHAMPION)
    if alias is None:
        raise AliasNotFound(adapter.tenant, adapter.name, wanted or CHAMPION)
    return alias.desired
