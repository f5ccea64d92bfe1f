"""Operators do over gRPC what they do over HTTP, with the admin key and with no other."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.adapters.store import ArtifactStore
from loragate.server.admin.administration import Administration
from loragate.server.rpc.calls import AdminCalls
from loragate.server.rpc.registry import RegistryService
from loragate.v1 import registry_pb2 as pb
from loragate.v1.registry_pb2_grpc import (
    AdapterRegistryStub,
    add_AdapterRegistryServicer_to_server,
)
from support.clients.grpc_messages import call, refusal
from support.models.one_layer import write_adapter
from support.registry.follower import following
from support.registry.promotions import let_serve, make_ready

ADMIN_KEY = "lg-admin-test"
MAX_ADAPTER_BYTES = 100_000
AS_ADMIN = (("authorization", f"Bearer {ADMIN_KEY}"),)
SUPPORT = AdapterName("acme", "support")
METHODS = list[MethodDescriptor](pb.DESCRIPTOR.services_by_name["AdapterRegistry"].methods)


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path) -> Iterator[Registry]:
    path = shutil.copy(empty_registry, tmp_path)
    with Registry(f"sqlite:///{path}", ArtifactStore(tmp_path / "artifacts")) as opened:
        yield opened


@pytest_asyncio.fixture
async def snapshots(registry: Registry) -> AsyncIterator[SnapshotWatcher]:
    async with following(SnapshotWatcher(registry)) as watcher:
        yield watcher


@pytest.fixture
def service(registry: Registry, snapshots: SnapshotWatcher) -> RegistryService:
    def is_tenant_key(key: str) -> bool:
        return registry.snapshot().tenant_of_key(hash_key(key)) is not None

    calls = AdminCalls(ADMIN_KEY, is_tenant_key)
    return RegistryService(Administration(registry, "grpc", snapshots), calls, MAX_ADAPTER_BYTES)


@pytest_asyncio.fixture
async def channel(service: RegistryService) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    add_AdapterRegistryServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def admin(channel: grpc.aio.Channel) -> AdapterRegistryStub:
    return AdapterRegistryStub(channel)


@pytest.fixture
def adapter(registry: Registry, tmp_path: Path) -> AdapterName:
    """Two versions, of which the first is champion."""
    registry.tenants.create("acme")
    registry.versions.publish(SUPPORT, write_adapter(tmp_path / "one", seed=1))
    registry.versions.publish(SUPPORT, write_adapter(tmp_path / "two", seed=2))
    let_serve(registry, SUPPORT, "champion", 1)
    return SUPPORT


def header(adapter: str = "acme/support") -> pb.PublishAdapterRequest:
    return pb.PublishAdapterRequest(header=pb.PublishAdapterRequest.Header(adapter=adapter))


def upload(folder: Path) -> Iterator[pb.PublishAdapterRequest]:
    yield header()
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        for start in range(0, len(data), 100):
            yield chunk(file.name, data[start : start + 100])


def chunk(file_name: str, data: bytes) -> pb.PublishAdapterRequest:
    return pb.PublishAdapterRequest(
        chunk=pb.PublishAdapterRequest.Chunk(file_name=file_name, data=data)
    )


async def test_a_published_folder_is_the_same_version_as_one_published_on_the_spot(
    admin: AdapterRegistryStub, registry: Registry, tmp_path: Path
) -> None:
    registry.tenants.create("acme")
    folder = write_adapter(tmp_path / "one")
    published = await admin.PublishAdapter(upload(folder), metadata=AS_ADMIN)
    assert (published.version.adapter, published.version.version) == ("acme/support", "v1")
    on_the_spot = registry.versions.publish(SUPPORT, folder)
    assert (on_the_spot.number, on_the_spot.digest) == (1, published.version.digest)
    assert registry.audit.list("acme/support")[0].actor == "grpc"


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "invalid_value"),
        ([chunk("README.md", b"")], "invalid_value"),
        ([header(), header()], "invalid_value"),
        ([header("Acme")], "invalid_name"),
        ([header(), chunk("README.md", b"x" * (MAX_ADAPTER_BYTES + 1))], "adapter_too_large"),
        ([header(), chunk("../../evil.py", b"x")], "unexpected_file"),
        ([header()], "missing_file"),
    ],
    ids=["nothing", "no header", "two headers", "name", "too large", "path", "no files"],
)
async def test_what_is_no_adapter_is_refused_and_leaves_nothing(
    admin: AdapterRegistryStub,
    registry: Registry,
    messages: Iterable[pb.PublishAdapterRequest],
    error: str,
) -> None:
    registry.tenants.create("acme")
    failure = await refusal(admin.PublishAdapter(iter(messages), metadata=AS_ADMIN))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(failure.trailing_metadata())["x-error-code"] == error
    assert registry.adapters() == []


async def test_bytes_that_are_no_message_are_the_clients_fault(
    channel: grpc.aio.Channel,
) -> None:
    (publish,) = [method for method in METHODS if method.client_streaming]
    failure = await refusal(call(channel, publish, b"\xff\xff", AS_ADMIN))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT


def _champion(desired: str) -> pb.Alias:
    """Which serves v1, unmerged."""
    return pb.Alias(
        name="champion",
        version=desired,
        serving="v1",
        mode=pb.MODE_UNMERGED,
        serving_mode=pb.MODE_UNMERGED,
    )


async def test_an_adapter_is_shown_whole(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    shown = await admin.GetAdapter(pb.GetAdapterRequest(adapter=str(adapter)), metadata=AS_ADMIN)
    known = registry.versions.show(adapter)
    assert [version.version.version for version in shown.versions] == ["v2", "v1"]
    assert [version.version.digest for version in shown.versions] == [
        version.digest for version in known.versions
    ]
    newest = shown.versions[0]
    assert newest.state == pb.VersionDetails.STATE_PUBLISHED
    assert (newest.rank, newest.size_bytes) == (2, known.versions[0].size_bytes)
    assert newest.created_at.ToDatetime(known.versions[0].created_at.tzinfo) == (
        known.versions[0].created_at
    )
    serving = shown.versions[1]
    assert (serving.state, list(serving.serves)) == (pb.VersionDetails.STATE_READY, ["champion"])
    assert list(shown.aliases) == [_champion("v1")]
    latest, moved = shown.recent_changes[:2]
    assert (latest.action, latest.subject) == ("alias.serve", "acme/support@champion")
    assert (latest.HasField("from_version"), latest.to_version) == (False, "v1")
    assert (moved.subject, moved.from_state, moved.to_state) == (
        "acme/support@v1",
        "LOADING",
        "READY",
    )


async def test_a_failed_version_is_shown_with_its_reason_and_the_one_that_serves_stays(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    two = registry.aliases.set(adapter, "champion", 2)
    registry.states.set(two, AdapterState.LOADING, "server")
    registry.states.set(two, AdapterState.FAILED, "server", "it has no effect")
    shown = await admin.GetAdapter(pb.GetAdapterRequest(adapter=str(adapter)), metadata=AS_ADMIN)
    assert list(shown.aliases) == [_champion("v2")]
    newest = shown.versions[0]
    assert (newest.state, newest.reason) == (pb.VersionDetails.STATE_FAILED, "it has no effect")


async def test_every_state_has_its_own_name_in_the_messages() -> None:
    names = {f"STATE_{state}" for state in AdapterState}
    assert names == set(pb.VersionDetails.State.keys()) - {"STATE_UNSPECIFIED"}


async def test_a_version_in_the_engine_is_retired_later_and_its_files_are_collected(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    two = make_ready(registry, registry.snapshot().resolve("acme", "support", "v2"))
    request = pb.RetireVersionRequest(adapter="acme/support", version="v2")
    await admin.RetireVersion(request, metadata=AS_ADMIN)
    shown = await admin.GetAdapter(pb.GetAdapterRequest(adapter=str(adapter)), metadata=AS_ADMIN)
    newest = shown.versions[0]
    assert (newest.state, newest.retiring) == (pb.VersionDetails.STATE_READY, True)
    none = await admin.CollectArtifacts(pb.CollectArtifactsRequest(), metadata=AS_ADMIN)
    assert list(none.digests) == []

    registry.states.reset("server")
    dry_run = pb.CollectArtifactsRequest(dry_run=True)
    for _ in range(2):
        named = await admin.CollectArtifacts(dry_run, metadata=AS_ADMIN)
        assert list(named.digests) == [two.digest]
    collected = await admin.CollectArtifacts(pb.CollectArtifactsRequest(), metadata=AS_ADMIN)
    assert list(collected.digests) == [two.digest]


async def test_merged_model_is_asked_for_routed_to_and_stopped(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    asked = pb.ServeMergedRequest(adapter=str(adapter), version="v2")
    assert (await admin.ServeMerged(asked, metadata=AS_ADMIN)).version.version == "v2"
    name = {"adapter": str(adapter), "alias": "canary", "version": "v2"}
    await admin.SetAlias(pb.SetAliasRequest(**name, mode=pb.MODE_MERGED), metadata=AS_ADMIN)

    page = pb.GetAdapterRequest(adapter=str(adapter))
    shown = await admin.GetAdapter(page, metadata=AS_ADMIN)
    assert (shown.versions[0].merged.wanted, shown.versions[0].merged.state) == (True, "WAITING")
    [canary] = [alias for alias in shown.aliases if alias.name == "canary"]
    assert (canary.mode, canary.serving_mode) == (pb.MODE_MERGED, pb.MODE_UNMERGED)

    await admin.SetAlias(pb.SetAliasRequest(**name), metadata=AS_ADMIN)
    stop = pb.StopMergedRequest(adapter=str(adapter), version="v2")
    await admin.StopMerged(stop, metadata=AS_ADMIN)
    shown = await admin.GetAdapter(page, metadata=AS_ADMIN)
    assert not shown.versions[0].HasField("merged")


async def test_versions_are_pinned_and_unpinned_and_a_server_may_say_why_not(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    pin = pb.PinVersionRequest(adapter=str(adapter), selector="v2")
    pinned = await admin.PinVersion(pin, metadata=AS_ADMIN)
    assert pinned.version.version == "v2"
    two = registry.snapshot().resolve("acme", "support", "v2")
    registry.pins.refuse(two, "there is no room", "server")
    page = pb.GetAdapterRequest(adapter=str(adapter))
    newest = (await admin.GetAdapter(page, metadata=AS_ADMIN)).versions[0]
    assert (newest.pinned, newest.pin_refusal) == (True, "there is no room")

    unpin = pb.UnpinVersionRequest(adapter=str(adapter), selector="v2")
    await admin.UnpinVersion(unpin, metadata=AS_ADMIN)
    newest = (await admin.GetAdapter(page, metadata=AS_ADMIN)).versions[0]
    assert (newest.pinned, newest.pin_refusal) == (False, "")


async def test_adapters_are_listed_of_one_tenant_or_of_all(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry, tmp_path: Path
) -> None:
    registry.tenants.create("globex")
    registry.versions.publish(
        AdapterName("globex", "router"), write_adapter(tmp_path / "three", seed=3)
    )
    everybody = await admin.ListAdapters(pb.ListAdaptersRequest(), metadata=AS_ADMIN)
    assert [each.name for each in everybody.adapters] == ["acme/support", "globex/router"]
    one = await admin.ListAdapters(pb.ListAdaptersRequest(tenant="acme"), metadata=AS_ADMIN)
    assert [version.version for version in one.adapters[0].versions] == ["v1", "v2"]
    failure = await refusal(
        admin.ListAdapters(pb.ListAdaptersRequest(tenant="nobody"), metadata=AS_ADMIN)
    )
    assert failure.code() is grpc.StatusCode.NOT_FOUND


async def test_aliases_move_roll_back_and_go_and_versions_retire(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    moved = await admin.SetAlias(
        pb.SetAliasRequest(
            adapter="acme/support", alias="champion", version="v2", reason="it is better"
        ),
        metadata=AS_ADMIN,
    )
    assert moved.version.version == "v2"
    assert registry.audit.list("acme/support")[0].reason == "it is better"

    request = pb.RetireVersionRequest(adapter="acme/support", version="v2")
    in_use = await refusal(admin.RetireVersion(request, metadata=AS_ADMIN))
    assert in_use.code() is grpc.StatusCode.FAILED_PRECONDITION

    back = await admin.Rollback(pb.RollbackRequest(adapter="acme/support"), metadata=AS_ADMIN)
    assert back.version.version == "v1"
    await admin.RetireVersion(request, metadata=AS_ADMIN)
    retired = await refusal(
        admin.SetAlias(
            pb.SetAliasRequest(adapter="acme/support", alias="next", version="v2"),
            metadata=AS_ADMIN,
        )
    )
    assert retired.code() is grpc.StatusCode.FAILED_PRECONDITION

    await admin.DeleteAlias(
        pb.DeleteAliasRequest(adapter="acme/support", alias="champion"), metadata=AS_ADMIN
    )
    assert registry.versions.show(adapter).aliases == {}


async def test_tenants_and_keys_live_from_creation_to_deletion(
    admin: AdapterRegistryStub, registry: Registry
) -> None:
    made = await admin.CreateTenant(
        pb.CreateTenantRequest(tenant="acme", limits=pb.Limits(requests_per_minute=60)),
        metadata=AS_ADMIN,
    )
    assert registry.snapshot().tenant_of_key(hash_key(made.key.key)) == "acme"
    again = await refusal(
        admin.CreateTenant(pb.CreateTenantRequest(tenant="acme"), metadata=AS_ADMIN)
    )
    assert again.code() is grpc.StatusCode.ALREADY_EXISTS

    await admin.SetLimits(
        pb.SetLimitsRequest(tenant="acme", limits=pb.Limits(tokens_per_minute=1000)),
        metadata=AS_ADMIN,
    )
    listed = await admin.ListTenants(pb.ListTenantsRequest(), metadata=AS_ADMIN)
    assert [tenant.name for tenant in listed.tenants] == ["acme"]
    assert listed.tenants[0].limits == pb.Limits(tokens_per_minute=1000)

    further = await admin.CreateKey(
        pb.CreateKeyRequest(tenant="acme", name="billing"), metadata=AS_ADMIN
    )
    await admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key.id), metadata=AS_ADMIN)
    keys = await admin.ListKeys(pb.ListKeysRequest(tenant="acme"), metadata=AS_ADMIN)
    revoked = {key.id: key.HasField("revoked_at") for key in keys.keys}
    assert revoked == {made.key.id: True, further.key.id: False}
    assert registry.snapshot().tenant_of_key(hash_key(made.key.key)) is None

    await admin.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"), metadata=AS_ADMIN)
    assert registry.snapshot().tenant_of_key(hash_key(further.key.key)) is None


async def test_a_watch_tells_the_state_and_then_every_change_in_order(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    watching = admin.WatchAdapters(pb.WatchAdaptersRequest(), metadata=AS_ADMIN)
    state = await watching.read()
    assert [each.name for each in state.adapters] == ["acme/support"]
    assert not state.HasField("change")

    for number in (2, 1) * 20:  # more than one look at the audit log brings
        await asyncio.to_thread(registry.aliases.set, adapter, "champion", number)
    registry.tenants.delete("acme")
    told = [await watching.read() for _ in range(41)]
    assert [each.change.to_version for each in told[:-1]] == ["v2", "v1"] * 20
    assert {each.change.subject for each in told[:-1]} == {"acme/support@champion"}
    assert (told[-1].change.action, list(told[-1].adapters)) == ("tenant.delete", [])
    watching.cancel()


async def test_a_watch_shows_the_adapter_as_a_change_left_it(
    admin: AdapterRegistryStub, adapter: AdapterName, registry: Registry
) -> None:
    watching = admin.WatchAdapters(pb.WatchAdaptersRequest(tenant="acme"), metadata=AS_ADMIN)
    await watching.read()
    registry.tenants.create("globex")  # somebody else's change
    registry.aliases.set(adapter, "challenger", 2)
    told = await watching.read()
    aliases = {alias.name: alias.version for alias in told.adapters[0].aliases}
    assert aliases == {"champion": "v1", "challenger": "v2"}
    watching.cancel()


async def test_watches_ask_the_registry_only_when_the_server_has_seen_a_change(
    admin: AdapterRegistryStub,
    adapter: AdapterName,
    registry: Registry,
    snapshots: SnapshotWatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    for asks, question in (
        (registry.audit, "list"),
        (registry.audit, "after"),
        (registry, "snapshot"),
    ):
        monkeypatch.setattr(asks, question, _counted(getattr(asks, question), asked))
    watching = [admin.WatchAdapters(pb.WatchAdaptersRequest(), metadata=AS_ADMIN) for _ in range(5)]
    for watch in watching:
        await watch.read()
    await asyncio.to_thread(registry.aliases.set, adapter, "challenger", 2)
    for watch in watching:
        assert (await watch.read()).change.subject == "acme/support@challenger"

    before = list(asked)
    for _ in range(50):
        await snapshots.refresh()
    assert asked[len(before) :].count("after") <= 5  # of those that have just been told
    before = list(asked)
    for _ in range(50):
        await snapshots.refresh()
    assert asked == before
    for watch in watching:
        watch.cancel()


def _counted(call: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def count(*arguments: object) -> object:
        calls.append(call.__name__)
        return call(*arguments)

    return count


async def test_watches_end_when_the_server_is_about_to_stop(
    admin: AdapterRegistryStub, service: RegistryService
) -> None:
    watching = admin.WatchAdapters(pb.WatchAdaptersRequest(), metadata=AS_ADMIN)
    await watching.read()
    service.end_watches()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watching.read()
    failure = ended.value
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(failure.trailing_metadata())["x-error-code"] == "draining"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_no_method_opens_without_the_admin_key(
    channel: grpc.aio.Channel, registry: Registry, method: MethodDescriptor
) -> None:
    tenant_key = registry.tenants.create("acme").key
    for key, code in (
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("lg-wrong", grpc.StatusCode.UNAUTHENTICATED),
        (tenant_key, grpc.StatusCode.PERMISSION_DENIED),
    ):
        metadata = () if key is None else (("x-api-key", key),)
        failure = await refusal(call(channel, method, metadata=metadata))
        assert failure.code() is code
