import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import ProgrammingError

from loragate.adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    InvalidAdapter,
    InvalidLimits,
    InvalidName,
    KeyNotFound,
    NothingToRollBack,
    StoreError,
    TenantExists,
    TenantNotFound,
    VersionInUse,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.records import UsageRow, new_row_id
from loragate.adapters.registry.registry import Limits, Registry
from loragate.adapters.store import ArtifactStore
from support.concurrent_processes import run_together
from support.models.one_layer import WriteAdapter
from support.registry.promotions import let_serve

SUPPORT = AdapterName("acme", "support")
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)

PUBLISH_ALL = """
import sys
from pathlib import Path
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
url, root, *folders = sys.argv[1:]
with Registry(url, ArtifactStore(Path(root))) as registry:
    print("ready", flush=True)
    sys.stdin.readline()
    for folder in folders:
        version = registry.versions.publish(AdapterName("acme", "support"), Path(folder))
        print(version.number, version.lora_id, flush=True)
"""


@pytest.fixture
def acme(registry: Registry) -> str:
    return registry.tenants.create("acme").key


@pytest.fixture
def three_versions(registry: Registry, acme: str, write_adapter: WriteAdapter) -> AdapterName:
    for seed in range(3):
        registry.versions.publish(SUPPORT, write_adapter(f"v{seed + 1}", seed=seed))
    return SUPPORT


def test_key_is_shown_once_and_kept_as_a_hash(registry: Registry, database_url: str):
    new = registry.tenants.create("acme")

    lg, public, secret = new.key.split("-", 2)
    assert (lg, len(public), len(secret)) == ("lg", 8, 43)
    assert new.key_id == f"lg-{public}"
    assert new.key not in repr(new)
    assert registry.snapshot().tenant_of_key(hash_key(new.key)) == "acme"
    files = Path(database_url.removeprefix("sqlite:///")).parent.glob("registry.db*")
    assert all(secret.encode() not in file.read_bytes() for file in files)


def test_revoked_key_stops_working_and_the_others_go_on(registry: Registry, acme: str):
    second = registry.tenants.create_key("acme", "ci")

    registry.tenants.revoke_key(second.key_id)
    registry.tenants.revoke_key(second.key_id)

    snapshot = registry.snapshot()
    assert snapshot.tenant_of_key(hash_key(second.key)) is None
    assert snapshot.tenant_of_key(hash_key(acme)) == "acme"
    assert [(key.name, key.revoked_at is None) for key in registry.tenants.list_keys("acme")] == [
        ("default", True),
        ("ci", False),
    ]


def test_unknown_key_is_named_by_its_public_part_only(registry: Registry, acme: str):
    with pytest.raises(KeyNotFound) as missing:
        registry.tenants.revoke_key("lg-abcdefgh-this-is-the-secret")

    assert "lg-abcdefgh" in str(missing.value)
    assert "secret" not in str(missing.value)


def test_tenant_cannot_be_made_twice_nor_after_its_deletion(registry: Registry, acme: str):
    with pytest.raises(TenantExists):
        registry.tenants.create("acme")
    registry.tenants.delete("acme")
    with pytest.raises(TenantExists):
        registry.tenants.create("acme")


def test_deleted_tenant_is_gone_with_its_keys_and_adapters(
    registry: Registry, three_versions: AdapterName, acme: str
):
    registry.tenants.delete("acme")

    snapshot = registry.snapshot()
    assert not snapshot.has_tenant("acme")
    assert snapshot.tenant_of_key(hash_key(acme)) is None
    assert list(snapshot.versions()) == []
    assert registry.tenants.list() == ()
    assert registry.adapters() == []
    for call in (registry.tenants.list_keys, registry.tenants.create_key, registry.adapters):
        with pytest.raises(TenantNotFound):
            call("acme")
    with pytest.raises(TenantNotFound):
        registry.versions.show(three_versions)


def test_limits_are_kept_and_replaced(registry: Registry):
    registry.tenants.create("acme", Limits(requests_per_minute=60, max_concurrent=4))
    registry.tenants.set_limits("acme", Limits(tokens_per_minute=1000))

    assert registry.tenants.list()[0].limits == Limits(tokens_per_minute=1000)
    assert registry.snapshot().limits("acme") == Limits(tokens_per_minute=1000)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_limit_that_is_no_positive_number_is_refused(value: int):
    with pytest.raises(InvalidLimits, match="tokens_per_minute"):
        Limits(tokens_per_minute=value)


def test_published_version_is_stored_listed_and_not_yet_served(
    registry: Registry, store: ArtifactStore, acme: str, write_adapter: WriteAdapter
):
    version = registry.versions.publish(SUPPORT, write_adapter(), actor="ada")

    assert str(version) == "acme/support@v1"
    store.verify(version.digest)
    [listing] = registry.adapters("acme")
    assert (listing.name, listing.versions, dict(listing.aliases)) == ("support", (version,), {})
    shown = registry.versions.show(SUPPORT)
    assert (shown.versions[0].version, shown.versions[0].state) == (version, "PUBLISHED")
    assert (shown.versions[0].rank, shown.versions[0].aliases) == (2, ())
    assert shown.versions[0].size_bytes == sum(
        file.stat().st_size for file in store.path(version.digest).iterdir()
    )
    assert (shown.audit[0].actor, shown.audit[0].action) == ("ada", "adapter.publish")
    assert shown.audit[0].digest == version.digest


def test_publishing_the_same_again_gives_the_same_version_and_changes_nothing(
    registry: Registry, acme: str, write_adapter: WriteAdapter
):
    first = registry.versions.publish(SUPPORT, write_adapter("one"))
    revision = registry.revision()

    assert registry.versions.publish(SUPPORT, write_adapter("two")) == first
    assert registry.revision() == revision


def test_older_content_published_again_is_a_new_version(
    registry: Registry, acme: str, write_adapter: WriteAdapter
):
    old = write_adapter("old", seed=1)
    first = registry.versions.publish(SUPPORT, old)
    registry.versions.publish(SUPPORT, write_adapter("new", seed=2))

    again = registry.versions.publish(SUPPORT, old)

    assert (again.number, again.digest) == (3, first.digest)
    assert again.lora_id != first.lora_id


def test_number_and_lora_id_are_not_given_again_after_retirement(
    registry: Registry, acme: str, write_adapter: WriteAdapter
):
    folder = write_adapter()
    first = registry.versions.publish(SUPPORT, folder)
    registry.states.retire(SUPPORT, 1)

    second = registry.versions.publish(SUPPORT, folder)

    assert (first.number, second.number) == (1, 2)
    assert second.lora_id > first.lora_id


def test_folder_that_is_no_adapter_leaves_no_trace(
    registry: Registry, acme: str, write_adapter: WriteAdapter, tmp_path: Path
):
    with pytest.raises(InvalidAdapter):
        registry.versions.publish(SUPPORT, write_adapter(r=0))

    assert registry.adapters("acme") == []
    assert not (tmp_path / "artifacts").exists()


def test_publishing_for_an_unknown_tenant_copies_nothing(
    registry: Registry, write_adapter: WriteAdapter, tmp_path: Path
):
    with pytest.raises(TenantNotFound):
        registry.versions.publish(SUPPORT, write_adapter())

    assert not (tmp_path / "artifacts").exists()


def test_promotion_is_a_wish_and_says_why(registry: Registry, three_versions: AdapterName):
    served = let_serve(registry, three_versions, "champion", 1)
    promoted = registry.aliases.set(three_versions, "champion", 2, actor="ada", reason="better")

    snapshot = registry.snapshot()
    assert snapshot.resolve("acme", "support", "champion") == served
    assert [tuple(target)[1:] for target in snapshot.desired_aliases()] == [
        ("champion", promoted, served)
    ]
    row = registry.audit.list("acme/support")[0]
    assert (row.action, row.subject) == ("alias.set", "acme/support@champion")
    assert (row.from_version, row.to_version, row.reason) == (1, 2, "better")
    assert row.at.tzinfo is not None


def test_promoting_what_is_champion_already_changes_nothing(
    registry: Registry, three_versions: AdapterName
):
    registry.aliases.set(three_versions, "champion", 1)
    revision = registry.revision()

    registry.aliases.set(three_versions, "champion", 1)

    assert registry.revision() == revision


def test_alias_cannot_be_spelled_like_a_version(registry: Registry, three_versions: AdapterName):
    with pytest.raises(InvalidName):
        registry.aliases.set(three_versions, "v1", 2)


def test_alias_needs_a_version_that_exists_and_is_not_retired(
    registry: Registry, three_versions: AdapterName
):
    registry.states.retire(three_versions, 1)

    with pytest.raises(VersionRetired):
        registry.aliases.set(three_versions, "champion", 1)
    with pytest.raises(VersionNotFound):
        registry.aliases.set(three_versions, "champion", 4)
    with pytest.raises(AdapterNotFound):
        registry.aliases.set(AdapterName("acme", "other"), "champion", 1)


def test_rolling_back_twice_goes_back_twice(registry: Registry, three_versions: AdapterName):
    for number in (1, 2, 3):
        registry.aliases.set(three_versions, "champion", number)

    assert registry.aliases.rollback(three_versions).number == 2
    assert registry.aliases.rollback(three_versions).number == 1
    with pytest.raises(NothingToRollBack, match="before v1"):
        registry.aliases.rollback(three_versions)
    assert registry.versions.show(three_versions).aliases["champion"].desired.number == 1


def test_rollback_after_a_rollback_and_a_promotion_skips_what_was_rolled_back(
    registry: Registry, three_versions: AdapterName
):
    registry.aliases.set(three_versions, "champion", 1)
    registry.aliases.set(three_versions, "champion", 2)
    registry.aliases.rollback(three_versions)
    registry.aliases.set(three_versions, "champion", 3)

    assert registry.aliases.rollback(three_versions).number == 1


def test_rollback_passes_over_a_retired_version(registry: Registry, three_versions: AdapterName):
    for number in (1, 2, 3, 2, 3):
        registry.aliases.set(three_versions, "champion", number)
    registry.states.retire(three_versions, 2)

    assert registry.aliases.rollback(three_versions).number == 1


def test_rollback_needs_a_champion(registry: Registry, three_versions: AdapterName):
    with pytest.raises(AliasNotFound, match="promote"):
        registry.aliases.rollback(three_versions)


def test_rollback_does_not_reach_behind_a_deleted_champion(
    registry: Registry, three_versions: AdapterName
):
    registry.aliases.set(three_versions, "champion", 1)
    registry.aliases.delete(three_versions, "champion")
    registry.aliases.set(three_versions, "champion", 2)

    with pytest.raises(NothingToRollBack):
        registry.aliases.rollback(three_versions)


def test_deleted_alias_resolves_no_more(registry: Registry, three_versions: AdapterName):
    registry.aliases.set(three_versions, "challenger", 2)
    registry.aliases.delete(three_versions, "challenger")

    with pytest.raises(AliasNotFound):
        registry.snapshot().resolve("acme", "support", "challenger")
    with pytest.raises(AliasNotFound):
        registry.aliases.delete(three_versions, "challenger")


def test_version_in_use_is_not_retired(registry: Registry, three_versions: AdapterName):
    registry.aliases.set(three_versions, "champion", 2)
    registry.aliases.set(three_versions, "challenger", 2)

    with pytest.raises(VersionInUse, match="challenger, champion"):
        registry.states.retire(three_versions, 2)


def test_retired_version_stays_in_the_record(registry: Registry, three_versions: AdapterName):
    registry.states.retire(three_versions, 2)
    registry.states.retire(three_versions, 2)

    states = [
        (row.version.number, row.state) for row in registry.versions.show(three_versions).versions
    ]
    assert states == [(3, "PUBLISHED"), (2, "RETIRED"), (1, "PUBLISHED")]
    assert [row.action for row in registry.audit.list("acme/support")].count("version.retire") == 1


def test_every_change_has_its_own_revision_and_audit_row(
    registry: Registry, write_adapter: WriteAdapter
):
    registry.tenants.create("acme")
    registry.versions.publish(SUPPORT, write_adapter())
    registry.aliases.set(SUPPORT, "champion", 1)

    assert [row.action for row in reversed(registry.audit.list())] == [
        "tenant.create",
        "key.create",
        "adapter.publish",
        "alias.set",
    ]
    assert registry.revision() == 4


def test_audit_of_a_tenant_leaves_out_its_namesakes(registry: Registry):
    registry.tenants.create("acme")
    registry.tenants.create("acme-two")

    assert {row.subject.split(":")[0] for row in registry.audit.list("acme")} == {"acme"}
    assert len(registry.audit.list(limit=1)) == 1


def usage_row(request_id: str, tenant: str = "acme", minutes: int = 0, **change: int) -> UsageRow:
    counts = {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 2} | change
    at = NOW + timedelta(minutes=minutes)
    return UsageRow(
        request_id, at, tenant, "acme/support@v1", "ab", "http", **counts,
        ttft_seconds=0.1, duration_seconds=0.5, outcome="ok", row_id=new_row_id(),
    )  # fmt: skip


def test_usage_is_read_back_as_it_was_written(registry: Registry):
    rows = [usage_row("a"), usage_row("b", "globex", 1), usage_row("c", minutes=2)]
    revision = registry.revision()

    registry.usage.add(rows)
    registry.usage.add([])

    assert registry.usage.list() == (rows[2], rows[1], rows[0])
    assert registry.usage.list("acme", since=NOW + timedelta(minutes=1)) == (rows[2],)
    assert registry.usage.list(limit=1) == (rows[2],)
    assert registry.revision() == revision


def test_request_id_used_twice_is_counted_twice(registry: Registry):
    registry.usage.add([usage_row("same"), usage_row("same", prompt_tokens=20)])

    [total] = registry.usage.totals("acme")
    assert (total.requests, total.prompt_tokens, total.completion_tokens) == (2, 30, 10)


def test_usage_written_twice_is_counted_once(registry: Registry):
    rows = [usage_row("a"), usage_row("b")]
    registry.usage.add(rows[:1])

    registry.usage.add(rows)

    assert sorted(row.request_id for row in registry.usage.list()) == ["a", "b"]


@given(bad=st.sets(st.integers(0, 19)))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_that_cannot_be_stored_cost_no_other_record(registry: Registry, bad: set[int]):
    tenant = f"acme-{new_row_id()}"
    rows = [usage_row(str(i), tenant, minutes=i) for i in range(20)]
    impossible = {"prompt_tokens": 1 << 70}  # the driver's own refusal, of no class of SQL

    registry.usage.add([replace(r, **impossible) if i in bad else r for i, r in enumerate(rows)])

    assert {row.row_id for row in registry.usage.list(tenant)} == {
        row.row_id for i, row in enumerate(rows) if i not in bad
    }


def test_record_of_another_type_is_left_out_once_another_is_taken(registry: Registry):
    wrong = replace(usage_row("a"), tenant=cast(str, object()))
    with pytest.raises((ProgrammingError, StoreError)):
        registry.usage.add([wrong] * 40)

    registry.usage.add([wrong, usage_row("b")])

    assert [row.request_id for row in registry.usage.list()] == ["b"]


def test_totals_are_by_tenant(registry: Registry):
    registry.usage.add([usage_row("a"), usage_row("b", "globex"), usage_row("c", "globex")])

    totals = [(total.tenant, total.requests) for total in registry.usage.totals()]
    assert totals == [("acme", 1), ("globex", 2)]


def test_everything_is_there_after_reopening(
    registry: Registry, three_versions: AdapterName, database_url: str, store: ArtifactStore
):
    registry.aliases.set(three_versions, "champion", 3)
    registry.usage.add([usage_row("a")])
    before = registry.snapshot(), registry.versions.show(three_versions), registry.usage.list()
    registry.close()

    with Registry(database_url, store) as reopened:
        assert (
            reopened.snapshot(),
            reopened.versions.show(three_versions),
            reopened.usage.list(),
        ) == before


def test_two_processes_publishing_at_once_share_out_the_numbers(
    registry: Registry, acme: str, write_adapter: WriteAdapter, tmp_path: Path, database_url: str
):
    each = 5
    folders = [[write_adapter(f"{p}-{i}", seed=p * each + i) for i in range(each)] for p in (0, 1)]
    where = [database_url, str(tmp_path / "artifacts")]

    written = run_together(PUBLISH_ALL, *([*where, *map(str, mine)] for mine in folders))

    numbers, lora_ids = zip(
        *[map(int, line.split()) for mine in written for line in mine.splitlines()], strict=True
    )
    assert sorted(numbers) == list(range(1, 2 * each + 1))
    assert len(set(lora_ids)) == 2 * each
    assert [version.number for version in registry.adapters("acme")[0].versions] == sorted(numbers)


def test_threads_share_one_registry(registry: Registry, three_versions: AdapterName):
    def move(number: int) -> int:
        registry.aliases.set(three_versions, "champion", number % 3 + 1)
        registry.usage.add([usage_row(str(number))])
        [target] = registry.snapshot().desired_aliases()
        return target.desired.number

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(move, range(24))) <= {1, 2, 3}
    assert registry.usage.totals()[0].requests == 24


def test_contract_is_published_with_the_version(
    registry: Registry, acme: str, write_adapter: WriteAdapter
):
    folder = write_adapter()
    contract = {"system_prompt": "Be brief.", "sampling_defaults": {"temperature": 0.0}}
    (folder / "manifest.json").write_text(json.dumps({"contract": contract}))

    version = registry.versions.publish(SUPPORT, folder)

    served = registry.snapshot().manifest(version).contract
    assert (served.system_prompt, served.sampling_defaults) == ("Be brief.", {"temperature": 0.0})
