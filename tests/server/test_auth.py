from collections.abc import Iterator
from pathlib import Path

import pytest

from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.adapters.store import ArtifactStore
from loragate.server.errors import ModelNotFound, PermissionDenied, Unauthenticated
from loragate.server.gateway.auth import Authenticator

ADMIN_KEY = "lg-admin-secret"


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        yield registry


@pytest.fixture
def watcher(registry: Registry, tmp_path: Path) -> SnapshotWatcher:
    return SnapshotWatcher(registry)


@pytest.fixture
def authenticator(watcher: SnapshotWatcher) -> Authenticator:
    return Authenticator(watcher, ADMIN_KEY)


async def test_a_key_says_whose_it_is(
    registry: Registry, watcher: SnapshotWatcher, authenticator: Authenticator
) -> None:
    acme, globex = registry.tenants.create("acme").key, registry.tenants.create("globex").key
    second = registry.tenants.create_key("acme").key
    await watcher.refresh()
    assert authenticator.authenticate(acme) == "acme"
    assert authenticator.authenticate(second) == "acme"
    assert authenticator.authenticate(globex) == "globex"
    assert authenticator.is_tenant_key(acme)


@pytest.mark.parametrize("key", [None, ""])
def test_no_key_is_refused_with_how_to_send_one(
    authenticator: Authenticator, key: str | None
) -> None:
    with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
        authenticator.authenticate(key)


@pytest.mark.parametrize("key", ["lg-abcd2345-guess", "ключ", "x" * 10_000])
def test_an_unknown_key_is_refused_without_being_repeated(
    authenticator: Authenticator, key: str
) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        authenticator.authenticate(key)
    assert key not in str(refusal.value)
    assert not authenticator.is_tenant_key(key)
    assert not authenticator.is_admin_key(key)


async def test_a_revoked_key_is_unknown(
    registry: Registry, watcher: SnapshotWatcher, authenticator: Authenticator
) -> None:
    new = registry.tenants.create("acme")
    await watcher.refresh()
    registry.tenants.revoke_key(new.key_id)
    await watcher.refresh()
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(new.key)


def test_the_admin_key_opens_no_model(authenticator: Authenticator) -> None:
    assert authenticator.is_admin_key(ADMIN_KEY)
    assert not authenticator.is_tenant_key(ADMIN_KEY)
    with pytest.raises(PermissionDenied, match="admin key"):
        authenticator.authenticate(ADMIN_KEY)


async def test_at_another_tenant_s_endpoint_a_key_finds_what_it_finds_where_there_is_none(
    registry: Registry, watcher: SnapshotWatcher, authenticator: Authenticator
) -> None:
    key = registry.tenants.create("acme").key
    registry.tenants.create("globex")
    await watcher.refresh()
    assert authenticator.authenticate(key, "acme") == "acme"
    refusals: list[str] = []
    for endpoint in ("globex", "nobody"):
        with pytest.raises(ModelNotFound) as refusal:
            authenticator.authenticate(key, endpoint)
        refusals.append(str(refusal.value))
    assert refusals[0] == refusals[1]
