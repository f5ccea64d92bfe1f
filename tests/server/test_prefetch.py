"""What was in use before a start is loaded again, and waits for nobody."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.listings import AdapterSnapshot, VersionEntry
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.registry.snapshot import Limits, Snapshot, TenantEntry
from loragate.adapters.store import ArtifactStore
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.concurrency.retries import Backoff, Retries
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.config import EngineConfig
from loragate.server.core import Route
from loragate.server.engine.protocol import LoadedAdapter
from loragate.server.errors import EngineDead, MachineFault
from loragate.server.residency import prefetch
from loragate.server.residency.prefetch import HotList, Prefetch
from loragate.server.residency.residency import Residency
from support.engines.echo_engine import DirectLoader, EchoEngine
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, Furnished, serve, small_config
from support.waiting import until


@pytest.fixture
def versions() -> list[AdapterVersion]:
    return [AdapterVersion("acme", "support", n, f"digest-{n}", n) for n in (1, 2, 3)]


def route(version: AdapterVersion) -> Route:
    return Route(version.tenant, version)


def pool(engine: EchoEngine, slots: int = 2) -> tuple[Residency, FairQueue]:
    queue = FairQueue(permits=9, slots=slots, bounds=QueueBounds(9, 9, 1), turn_seconds=0)
    return Residency(DirectLoader(engine), queue, max_resident=3), queue


def test_hot_list_is_read_as_it_was_written(tmp_path: Path, versions: list[AdapterVersion]) -> None:
    path = tmp_path / "hot.json"
    HotList(path).write(versions)
    assert HotList(path).read() == tuple(versions)
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".new"] == []


@pytest.mark.parametrize("content", [None, b"", b"{", b'[{"tenant": 3}]'])
def test_hot_list_that_cannot_be_read_says_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "hot.json"
    if content is not None:
        path.write_bytes(content)
    assert HotList(path).read() == ()


async def test_prefetched_version_is_the_first_to_leave_and_drives_nobody_out(
    versions: list[AdapterVersion],
) -> None:
    engine = EchoEngine()
    residency, _ = pool(engine)
    one, two, three = versions
    four = AdapterVersion("acme", "support", 4, "digest-4", 4)
    async with residency.acquire(route(one)):
        pass
    await residency.prefetch(two)
    await residency.prefetch(three)
    assert residency.resident == (three, two, one)

    await residency.prefetch(four)
    assert residency.resident == (three, two, one)


async def test_prefetch_waits_for_a_slot_that_nobody_wants(versions: list[AdapterVersion]) -> None:
    engine = EchoEngine()
    residency, queue = pool(engine, slots=1)
    one, two, three = versions
    async with residency.acquire(route(one)):
        ahead = asyncio.create_task(residency.prefetch(two))
        asked = asyncio.create_task(queue.acquire_slot(three))
        await asyncio.sleep(0)
        assert not ahead.done()
    await asked
    await asyncio.sleep(0)
    assert engine.loads == ["acme/support@v1"]
    queue.release_slot(three)
    await asyncio.wait_for(ahead, 1)
    assert engine.loads == ["acme/support@v1", "acme/support@v2"]


async def test_pinned_version_makes_others_leave_and_never_leaves(
    versions: list[AdapterVersion],
) -> None:
    engine = EchoEngine()
    residency, _ = pool(engine, slots=1)
    pinned = AdapterVersion("acme", "support", 4, "digest-4", 4)
    residency.pin([pinned])
    for version in versions:
        async with residency.acquire(route(version)):
            pass
    await residency.prefetch(pinned)
    assert engine.unloads == ["acme/support@v1"]
    for version in versions:
        async with residency.acquire(route(version)):
            pass
    assert pinned in residency.resident
    assert str(pinned) not in engine.unloads


async def test_after_an_engine_restart_what_is_leased_comes_first_then_last_use(
    tmp_path: Path, versions: list[AdapterVersion]
) -> None:
    residency, _ = pool(EchoEngine())
    one, two, three = versions
    async with residency.acquire(route(one)):
        for version in (two, three):
            async with residency.acquire(route(version)):
                pass
        assert residency.forget_all() == (one, three, two)
    assert residency.resident == ()


async def test_after_an_engine_restart_what_is_pinned_comes_before_all_else(
    versions: list[AdapterVersion],
) -> None:
    residency, _ = pool(EchoEngine())
    one, two, three = versions
    for version in (two, one):
        async with residency.acquire(route(version)):
            pass
    residency.pin([two])
    async with residency.acquire(route(three)):
        assert residency.forget_all() == (two, three, one)


async def test_versions_that_cannot_serve_any_more_are_passed_over(
    tmp_path: Path, versions: list[AdapterVersion]
) -> None:
    engine = EchoEngine()
    residency, _ = pool(engine)
    hot = HotList(tmp_path / "hot.json")
    hot.write(versions)
    async with Prefetch(residency, Snapshot, hot, BackgroundTasks()).running():
        await asyncio.sleep(0.05)
    assert engine.loads == []


class Unforeseen(Exception):
    """What no part of the server knows."""


def told_by(versions: list[AdapterVersion]) -> Snapshot:
    """A registry's word that all of them may be served."""
    manifest = AdapterManifest(2, 4.0, ("q_proj",))
    entries = {
        version.lora_id: VersionEntry(version, AdapterState.PUBLISHED, "", False, manifest)
        for version in versions
    }
    adapter = AdapterSnapshot.of("acme", "support", entries, {})
    return Snapshot().renewed(1, {"acme": TenantEntry(Limits(), ())}, [adapter])


@dataclass
class FailingEngine(EchoEngine):
    """Fails in a way of its own for the adapters that are named here."""

    failing: dict[str, Exception] = field(default_factory=dict)

    async def load(self, adapter: LoadedAdapter) -> None:
        if (error := self.failing.get(str(adapter.version))) is not None:
            raise error
        await super().load(adapter)


@pytest.mark.parametrize(
    "error", [Unforeseen("in a load"), MachineFault("not now"), EngineDead("it died")]
)
async def test_version_that_cannot_be_loaded_ahead_holds_up_none_behind_it(
    tmp_path: Path, versions: list[AdapterVersion], error: Exception
) -> None:
    engine = FailingEngine(failing={"acme/support@v1": error})
    residency, _ = pool(engine)
    hot = HotList(tmp_path / "hot.json")
    hot.write(versions)

    quick = BackgroundTasks(backoff=Backoff(first=0.01))
    async with Prefetch(residency, lambda: told_by(versions), hot, quick).running():
        await until(lambda: len(engine.loads) == 2, 5)

    assert engine.loads == ["acme/support@v2", "acme/support@v3"]


async def test_pinned_version_that_this_machine_cannot_load_comes_again(
    tmp_path: Path, versions: list[AdapterVersion]
) -> None:
    engine = FailingEngine(failing={"acme/support@v1": MachineFault("the disk is away")})
    residency, _ = pool(engine)
    residency.pin(versions[:1])
    retries = Retries[AdapterVersion](Backoff(first=0.02))
    hot = HotList(tmp_path / "hot.json")
    ahead = Prefetch(residency, lambda: told_by(versions), hot, BackgroundTasks(), retries)
    async with ahead.running():
        ahead.want(versions[:1])
        await until(lambda: not retries.is_due(versions[0]), 5)
        engine.failing.clear()
        await until(lambda: engine.loads == ["acme/support@v1"], 5)


async def test_version_that_may_not_serve_any_more_when_its_slot_comes_is_passed_over(
    versions: list[AdapterVersion],
) -> None:
    engine = EchoEngine()
    residency, queue = pool(engine, slots=1)
    one, two, _ = versions
    may_serve = [True]
    async with residency.acquire(route(one)):
        ahead = asyncio.create_task(residency.prefetch(two, lambda: may_serve[0]))
        await asyncio.sleep(0)
        may_serve[0] = False
    await asyncio.wait_for(ahead, 1)
    assert engine.loads == ["acme/support@v1"]
    assert queue.slots_in_use == 0


async def test_version_that_is_wanted_again_while_it_is_loaded_ahead_is_loaded_again(
    tmp_path: Path, versions: list[AdapterVersion]
) -> None:
    engine = EchoEngine()
    residency, _ = pool(engine)
    hot = HotList(tmp_path / "hot.json")
    ahead = Prefetch(residency, lambda: told_by(versions), hot, BackgroundTasks())
    whole = residency.prefetch

    async def restart_at_the_end(
        version: AdapterVersion, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        await whole(version, is_wanted)
        if len(engine.loads) == 1:
            engine.loaded.clear()
            ahead.restore()

    residency.prefetch = restart_at_the_end
    async with ahead.running():
        ahead.want(versions[:1])
        await until(lambda: len(engine.loads) == 2, 5)
    assert list(engine.loaded) == [1]


async def test_hot_list_outlives_what_nobody_foresaw(
    tmp_path: Path, versions: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(HotList):
        calls = 0

        def write(self, versions: Sequence[AdapterVersion]) -> None:
            self.calls += 1
            if self.calls == 1:
                raise Unforeseen("in a write")
            super().write(versions)

    monkeypatch.setattr(prefetch, "_WRITE_SECONDS", 0.01)
    residency, _ = pool(EchoEngine())
    hot = Breaking(tmp_path / "hot.json")
    quick = BackgroundTasks(backoff=Backoff(first=0.01))
    async with Prefetch(residency, lambda: told_by(versions), hot, quick).running():
        await residency.load(versions[0])
        await until(lambda: hot.read() == (versions[0],), 5)


# ---- in a whole server


async def test_what_was_hot_is_hot_again_after_a_restart_of_the_server(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    first = EchoEngine()
    async with serve(furnished, tmp_path / "one", base, first) as served:
        assert (await served.chat(model="support@v1", max_tokens=1)).status_code == 200

    second = EchoEngine()
    moved = Furnished(tmp_path / "one", furnished.keys)
    async with serve(moved, tmp_path / "two", base, second):
        await until(lambda: second.loads == ["acme/support@v1"], 5)


async def test_after_a_restart_of_the_server_what_is_pinned_comes_before_what_was_hot(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    root, first, second = tmp_path / "home", EchoEngine(), EchoEngine()
    async with serve(furnished, root, base, first) as served:
        served.registry.versions.publish(SUPPORT, write_adapter(tmp_path / "v2", 7))
        assert (await served.chat(model="support@v1", max_tokens=1)).status_code == 200
    with Registry(Home(root).database_url, ArtifactStore(Home(root).artifacts)) as registry:
        registry.pins.add(SUPPORT, "v2")
    async with serve(furnished, root, base, second):
        await until(lambda: len(second.loads) == 2, 5)
    assert second.loads == ["acme/support@v2", "acme/support@v1"]


async def test_pinned_versions_are_loaded_and_those_beyond_the_room_are_refused(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    engine = EchoEngine()
    home = Home(tmp_path / "home")
    config = small_config(engine=EngineConfig(max_loras=1, max_cpu_loras=2))
    async with serve(furnished, home.root, base, engine, config) as served:
        served.registry.pins.add(SUPPORT, "v1")
        await until(lambda: engine.loads == ["acme/support@v1"], 5)
        other = served.registry.versions.publish(SUPPORT, write_adapter(tmp_path / "v2", 7))
        served.registry.pins.add(SUPPORT, "v2")

        def refusal() -> str:
            with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
                return registry.versions.show(SUPPORT).versions[0].pin_refusal

        await until(lambda: "room for 1 pinned" in refusal(), 5)
        served.registry.pins.remove(SUPPORT, "v1")
        await until(lambda: str(other) in engine.loads and not refusal(), 5)
