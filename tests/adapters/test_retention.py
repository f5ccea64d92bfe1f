import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

import loragate.adapters.registry.retention
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.records import UsageRow
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.retention import Pruned, Retention
from loragate.adapters.registry.tables import (
    Adapters,
    Arms,
    Audit,
    Base,
    Exposures,
    Feedback,
    Outcomes,
    ShadowPairs,
    Trials,
    UsageRecords,
)
from loragate.adapters.registry.trial_records import ExposureRow, FeedbackRow, OutcomeRow, ShadowRow
from loragate.adapters.store import ArtifactStore
from support.registry.promotions import let_serve

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
RETENTION = Retention(observations_days=30, usage_days=30, audit_days=30)
SUPPORT = AdapterName("acme", "support")


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(
    request: pytest.FixtureRequest,
    store: ArtifactStore,
    empty_registry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Registry]:
    """Deletes four rows at a time."""
    monkeypatch.setattr(loragate.adapters.registry.retention, "_ROWS_AT_ONCE", 4)
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(empty_registry, tmp_path / 'registry.db')}"
    else:
        url = request.getfixturevalue("postgresql_url")
    with Registry(url, store) as registry:
        registry.tenants.create("acme")
        registry.tenants.create("globex")
        yield registry


def before(days: float) -> datetime:
    return NOW - timedelta(days=days)


def add_trial(registry: Registry, number: int, ended: datetime | None, requests: int = 10) -> None:
    """That began 200 days ago, with so many requests and all that is kept of each."""
    with registry._database.writing() as session:
        session.add(Adapters(id=number, tenant_id="acme", name=f"a{number}", next_number=1))
        session.flush()
        trial = Trials(
            id=number,
            kind="rollout",
            adapter_id=number,
            salt="s",
            plan="{}",
            state="RUNNING" if ended is None else "PASSED",
            step=0,
            watched_seconds=0.0,
            reason="",
            created_at=before(200),
            updated_at=before(200),
            ended_at=ended,
        )
        session.add(trial)
        session.flush()
        arm = Arms(id=number, trial_id=number, position=0, name="a", mode="unmerged", share=1.0)
        session.add(arm)
    ids = [f"{number}-{place}" for place in range(requests)]
    at = before(199)
    registry.observations.add(
        [ExposureRow(id, number, 0, "acme", id, f"user-{id}", "user", at) for id in ids],
        [OutcomeRow(id, at, False, False, 1.0, 5, 0.1, 0.1) for id in ids],
        [ShadowRow(id, number, 0, at, "a", True, 1, 1, 1, 1.0, "x", "x") for id in ids],
    )
    for id in ids:
        registry.observations.add_feedback(FeedbackRow("acme", id, "thumbs", 1.0, "", None, at))


def used(number: int, tenant: str, adapter: str, at: datetime, tokens: int = 7) -> UsageRow:
    return UsageRow(
        f"req-{number}",
        at,
        tenant,
        adapter,
        "digest",
        "http",
        tokens,
        2 * tokens,
        tokens // 2,
        0.1,
        1.0,
        "ok",
        f"row-{number}",
    )


def rows(registry: Registry, table: type[Base]) -> int:
    with registry._database.reading() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def prune(registry: Registry, retention: Retention = RETENTION) -> Pruned:
    return sum(registry.retention.prune(retention, NOW), start=Pruned())


def test_what_a_trial_saw_goes_once_it_has_ended_long_ago_and_never_while_it_is_under_way(
    kept: Registry,
):
    add_trial(kept, 1, ended=before(31))
    add_trial(kept, 2, ended=before(29))
    add_trial(kept, 3, ended=None)

    expected = kept.retention.prunable(RETENTION, NOW)
    pruned = prune(kept)

    assert pruned == expected == Pruned(exposures=10, outcomes=10, shadows=10, feedback=10)
    with kept._database.reading() as session:
        arms = session.scalars(select(Exposures.arm_id).distinct().order_by(Exposures.arm_id))
        assert arms.all() == [2, 3]
    tables = (Outcomes, ShadowPairs, Feedback)
    assert {table.__tablename__: rows(kept, table) for table in tables} == {
        "outcomes": 20,
        "shadow_pairs": 20,
        "feedback": 20,
    }
    assert kept.trials.get(1).status.state == "PASSED"
    assert prune(kept) == kept.retention.prunable(RETENTION, NOW) == Pruned()


def test_sums_of_usage_are_the_same_whatever_was_deleted(kept: Registry):
    chance = random.Random(3)
    kept.usage.add(
        [
            used(
                number,
                chance.choice(["acme", "globex"]),
                chance.choice(["support@v1", "support@v2"]),
                before(60 * chance.random()),
                chance.randrange(100),
            )
            for number in range(60)
        ]
    )
    since = before(45).replace(hour=0)
    totals = kept.usage.totals(), kept.usage.totals("acme"), kept.usage.totals(since=since)

    expected = kept.retention.prunable(RETENTION, NOW)
    first = next(kept.retention.prune(RETENTION, NOW))
    assert first.usage <= 4
    rest = prune(kept)

    assert first + rest == expected
    assert 0 < expected.usage == 60 - rows(kept, UsageRecords)
    assert totals == (
        kept.usage.totals(),
        kept.usage.totals("acme"),
        kept.usage.totals(since=since),
    )
    assert all(row.at >= before(30) for row in kept.usage.list())
    kept.usage.add([used(60, "acme", "support@v1", before(45))])  # late, of a day that has a sum
    assert prune(kept).usage == 1
    assert sum(total.requests for total in kept.usage.totals()) == 61


def test_two_who_delete_at_once_count_no_row_twice(kept: Registry):
    kept.usage.add(
        [used(number, "acme", "support@v1", before(31 + number % 3)) for number in range(80)]
    )
    add_trial(kept, 1, ended=before(31), requests=20)
    totals = kept.usage.totals()

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: prune(kept), range(2))

    rest = prune(kept)  # what each has left to the other
    assert (one + other + rest).usage == 80
    assert (one + other + rest).exposures == 20
    assert kept.usage.totals() == totals


def test_what_is_written_between_two_steps_waits_for_none_and_stays(kept: Registry):
    kept.usage.add([used(number, "acme", "support@v1", before(31)) for number in range(12)])

    for number, _ in enumerate(kept.retention.prune(RETENTION, NOW)):
        kept.usage.add([used(100 + number, "acme", "support@v1", NOW)])

    assert [row.at for row in kept.usage.list()] == [NOW] * 3


def test_feedback_that_no_trial_saw_goes_with_the_usage_records(kept: Registry):
    for number, days in enumerate((31, 29)):
        at = before(days)
        kept.usage.add([used(number, "acme", "support@v1", at)])
        said = FeedbackRow("acme", f"req-{number}", "thumbs", 1.0, "", None, at)
        kept.observations.add_feedback(said)

    assert kept.retention.prunable(RETENTION, NOW) == prune(kept) == Pruned(usage=1, feedback=1)
    assert rows(kept, Feedback) == 1


def test_zero_days_keep_for_ever(kept: Registry):
    add_trial(kept, 1, ended=before(199))
    kept.usage.add([used(1, "acme", "support@v1", before(1000))])
    for_ever = Retention(0, 0, 0)

    assert kept.retention.prunable(for_ever, NOW) == prune(kept, for_ever) == Pruned()


def test_rollback_finds_its_way_after_the_audit_log_was_shortened(
    kept: Registry, write_adapter: Callable[..., Path]
):
    for seed in (1, 2):
        kept.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed))
        let_serve(kept, SUPPORT, "champion", seed)
    with kept._database.writing() as session:
        session.execute(update(Audit).values(at=before(31)))
    actions = Counter(row.action for row in kept.audit.list(limit=1000))
    others = sum(count for name, count in actions.items() if not name.startswith("alias."))

    assert kept.retention.prunable(RETENTION, NOW) == prune(kept) == Pruned(audit=others)

    left = Counter(row.action for row in kept.audit.list(limit=1000))
    assert left.total() == actions.total() - others > 0
    assert kept.aliases.rollback(SUPPORT).number == 1
