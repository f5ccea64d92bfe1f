"""Every listing of an operator comes in parts of a bounded size, over each way to ask for it."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry, UsageRow
from loragate.adapters.registry.trial_records import NewArm, TrialStatus
from loragate.adapters.store import ArtifactStore
from loragate.v1 import experiments_pb2, experiments_pb2_grpc, registry_pb2, registry_pb2_grpc
from support.models.one_layer import write_adapter
from support.server.command_line import Result, give_registry, move_to, running
from support.server.small_server import Served, bearer

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def filled(served: Served, tmp_path: Path) -> Served:
    """Three at least of everything that is listed."""
    fill(served.registry, write_adapter(tmp_path / "another", 7))
    return served


def fill(registry: Registry, folder: Path) -> None:
    registry.tenants.create("initech")
    registry.tenants.create_key("acme", "second")
    registry.tenants.create_key("acme", "third")
    for name in ("router", "writer"):
        registry.versions.publish(AdapterName("acme", name), folder)
    now = datetime.now(UTC)
    for used in ("base", "acme/support@v1", "acme/support@v2"):
        registry.usage.add(
            [UsageRow("r", now, "acme", used, "", "http", 1, 1, 0, None, 1.0, "stop")]
        )
    for _ in range(3):
        arms = (NewArm("challenger", 1), NewArm("champion", 1))
        trial = registry.trials.start("rollout", SUPPORT, arms, "{}", "RUNNING")
        registry.trials.move(trial, TrialStatus("ABORTED"), "ada", is_over=True)


async def test_over_http_a_header_says_how_a_listing_goes_on(filled: Served) -> None:
    async def ask(path: str, **query: str) -> httpx.Response:
        url = f"/admin/v1/{path}"
        return await filled.client.get(url, params=query, headers=bearer(filled.admin_key))

    async def read(path: str, **query: str) -> tuple[list[object], str | None]:
        reply = await ask(path, **query)
        assert reply.status_code == 200, reply.text
        return reply.json(), reply.headers.get("x-next-after")

    for path, query in (
        ("tenants", {}),
        ("tenants/acme/keys", {}),
        ("adapters", {}),
        ("adapters", {"tenant": "acme"}),
        ("audit", {}),
        ("usage", {}),
        ("trials", {}),
    ):
        whole, after = await read(path, limit="1000", **query)
        assert len(whole) >= 3
        assert after is None
        found, after = await read(path, limit="2", **query)
        while after is not None:
            assert len(found) % 2 == 0
            part, after = await read(path, limit="2", after=after, **query)
            found += part
        assert found == whole, path
        for limit in ("0", "1001"):
            assert (await ask(path, limit=limit)).status_code == 400


def test_a_command_says_how_its_listing_goes_on_where_no_script_reads_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_registry: Path,
) -> None:
    home = move_to(tmp_path, monkeypatch)
    give_registry(home, empty_registry)
    loragate = running(capsys)
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
        registry.versions.publish(SUPPORT, write_adapter(tmp_path / "one", 1))
        fill(registry, write_adapter(tmp_path / "another", 2))
        registry.tenants.create("umbrella")
        for command in (
            "tenant list",
            "key list acme",
            "adapter list",
            "usage",
            "rollout list",
        ):
            whole = loragate(f"{command} --json")
            assert whole.err == ""
            first = loragate(f"{command} --json --limit 2")
            after = first.err.strip().rpartition("--after ")[2]
            rest = loragate(f"{command} --json --after {after}")
            assert [*_rows(first), *_rows(rest)] == _rows(whole), command
            assert len(_rows(whole)) >= 3
        assert loragate("adapter list --limit 1001").code == 2


def _rows(result: Result) -> list[object]:
    assert isinstance(result.json, list)
    return result.json


async def test_over_http_a_cursor_that_means_nothing_is_the_clients_mistake(
    filled: Served,
) -> None:
    for path in ("adapters", "usage", "trials", "audit"):
        reply = await filled.client.get(
            f"/admin/v1/{path}?after=nothing", headers=bearer(filled.admin_key)
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_over_grpc_a_field_says_how_a_listing_goes_on(filled: Served) -> None:
    key = (("authorization", f"Bearer {filled.admin_key}"),)
    async with (
        filled.server.listening(),
        filled.channel() as channel,
    ):
        registry = registry_pb2_grpc.AdapterRegistryStub(channel)
        trials = experiments_pb2_grpc.ExperimentsStub(channel)
        listed_keys = partial(registry_pb2.ListKeysRequest, tenant="acme")
        for call, request, name in (
            (registry.ListTenants, registry_pb2.ListTenantsRequest, "tenants"),
            (registry.ListKeys, listed_keys, "keys"),
            (registry.ListAdapters, registry_pb2.ListAdaptersRequest, "adapters"),
            (trials.ListTrials, experiments_pb2.ListTrialsRequest, "trials"),
        ):
            whole = await call(request(), metadata=key)
            assert whole.next_after == ""
            assert len(getattr(whole, name)) >= 3
            part = await call(request(limit=2), metadata=key)
            found = list(getattr(part, name))
            assert len(found) == 2
            while part.next_after:
                part = await call(request(limit=2, after=part.next_after), metadata=key)
                found += getattr(part, name)
            assert found == list(getattr(whole, name))
            for limit in (0, 1001, -1):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(request(limit=limit), metadata=key)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
