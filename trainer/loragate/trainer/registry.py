"""Opens the registry to publish to, and finds versions in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import AliasNotFound, VersionNotFound
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.home import Home
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion, looks_like_version
from loragate.adapters.registry.registry import Registry
from loragate.adapters.settings import read_settings
from loragate.adapters.store import ArtifactStore


@contextmanager
def open_registry(home: Home, base: BaseModel | None = None) -> Iterator[Registry]:
    """The registry that a server with the same settings uses; closed when the block ends. With
    `base`, publishing checks that such a server can serve the version. Raises ConfigError.
    """
    settings = read_settings()
    url = settings.database_url(home.ensure())
    publish_check = None
    if base is not None:
        profile = BaseProfile.read(base, settings.read_template())
        publish_check = PublishCheck(profile, settings.max_lora_rank)
    with Registry(url, ArtifactStore(home.artifacts), publish_check) as registry:
        yield registry


def require_tenant(home: Home, adapter: str) -> None:
    """Raises InvalidName where `adapter` is no adapter's name, TenantNotFound where its tenant is
    not in the registry.
    """
    tenant = AdapterName.parse(adapter).tenant
    with open_registry(home) as registry:
        registry.tenants.get(tenant)


def find_version(registry: Registry, text: str) -> AdapterVersion:
    """The version that `acme/support@v3` names, or an alias as in `acme/support@challenger`, or
    `acme/support`, which means its champion. Of an alias the desired version is taken. Raises
    InvalidName, TenantNotFound, AdapterNotFound, VersionNotFound and AliasNotFound.
    """
    name, _, wanted = text.partition("@")
    adapter = AdapterName.parse(name)
    page = registry.versions.show(adapter)
    if looks_like_version(wanted):
        found = [each.version for each in page.versions if each.version.version == wanted]
        if not found:
            raise VersionNotFound(adapter.tenant, adapter.name, wanted)
        return found[0]
    alias = page.aliases.get(wanted or CHAMPION)
    if alias is None:
        raise AliasNotFound(adapter.tenant, adapter.name, wanted or CHAMPION)
    return alias.desired
