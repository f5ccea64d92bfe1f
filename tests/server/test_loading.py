"""How loads end: what is in the engine, what the registry says, and who waits for whom."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from loragate.adapters.errors import StoreError, VersionRetired
from loragate.adapters.format.files import inspect
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.format.ready_file import ReadyForm, read_ready
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.states import AdapterState, move
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.store import ArtifactStore
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.core import Delta, Route
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter
from loragate.server.errors import AdapterUnavailable, EngineDead, MachineFault
from loragate.server.residency.loader import Loader
from loragate.server.residency.probe import Probe
from loragate.server.residency.residency import Residency
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.models.one_layer import write_adapter
from support.models.tokenizers import byte_tokenizer
from support.waiting import until

PUBLISHED, LOADING, READY = AdapterState.PUBLISHED, AdapterState.LOADING, AdapterState.READY
FAILED, RETIRED = AdapterState.FAILED, AdapterState.RETIRED
FORM = ReadyForm("BF16", transposes_b=True)


@dataclass
class States:
    """Of versions, by the real table of moves; the database can be away."""

    states: dict[int, AdapterState] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    away_for: Set[AdapterState] = field(default_factory=frozenset)

    def set(
        self,
        version: AdapterVersion,
        state: AdapterState,
        actor: str,
        reason: str = "",
        *,
        unless: AdapterState | None = None,
    ) -> AdapterState:
        if state in self.away_for:
            raise StoreError("the database did not answer")
        if self.state(version) != unless:
            self.states[version.lora_id] = move(self.state(version), state)
            self.reasons[version.lora_id] = reason
        return self.state(version)

    def say_not_loaded(
        self, version: AdapterVersion, reason: str, actor: str, *, was_ready: bool = False
    ) -> None:
        if PUBLISHED in self.away_for:
            raise StoreError("the database did not answer")
        movable = {PUBLISHED, LOADING} | ({READY} if was_ready else set())
        if self.state(version) in movable:
            self.states[version.lora_id] = PUBLISHED
            self.reasons[version.lora_id] = reason

    def set_ready(self, version: AdapterVersion, actor: str, reason: str = "") -> AdapterState:
        return self.set(version, READY, actor, reason)

    def state(self, version: AdapterVersion) -> AdapterState:
        return self.states.get(version.lora_id, PUBLISHED)

    def reason(self, version: AdapterVersion) -> str:
        return self.reasons.get(version.lora_id, "")


@dataclass
class SlowStore(ArtifactStore):
    """Reads what is named here only once it may."""

    root: Path
    slow: set[str] = field(default_factory=set)
    may_read: threading.Event = field(default_factory=threading.Event)
    verified: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.root)

    def verify(self, digest: str) -> None:
        if digest in self.slow:
            assert self.may_read.wait(20)
        super().verify(digest)
        self.verified.append(digest)


@dataclass
class Machine:
    """All that loads, around an engine that echoes."""

    store: SlowStore
    engine: EchoEngine
    registry: States
    loader: Loader
    residency: Residency
    queue: FairQueue
    folder: Path
    made: int = 0

    def publish(self, tenant: str = "acme") -> AdapterVersion:
        self.made += 1
        digest = self.store.put(inspect(write_adapter(self.folder / f"v{self.made}", self.made)))
        self.store.get_ready(digest)
        return AdapterVersion(tenant, "support", self.made, digest, self.made)

    async def load(self, version: AdapterVersion) -> None:
        async with self.residency.acquire(Route(version.tenant, version)):
            assert version.lora_id in self.engine.loaded

    def weights(self, version: AdapterVersion) -> Path:
        path = self.store.path(version.digest) / "adapter_model.safetensors"
        path.chmod(0o600)
        return path

    def is_at_rest(self, version: AdapterVersion) -> bool:
        """Nowhere in the engine, and nobody believes that it is."""
        return (
            version.lora_id not in self.engine.loaded
            and not self.residency.is_resident(version)
            and version not in self.loader.passed
            and self.queue.slots_in_use == 0
        )


def machine_of(
    tmp_path: Path,
    engine: EchoEngine,
    *,
    timeout_seconds: float = 30.0,
    max_resident: int = 4,
    max_rank: int | None = None,
) -> Machine:
    registry, store = States(), SlowStore(tmp_path / "store")
    probe = Probe(engine, Renderer(byte_tokenizer()))
    loader = Loader(
        *(
            engine,
            SimpleNamespace(states=registry, aliases=registry),
            store,
            PublishCheck(None, max_rank),
            probe,
        ),  # pyright: ignore[reportArgumentType]
        timeout_seconds=timeout_seconds,
    )
    queue = FairQueue(permits=9, slots=2, bounds=QueueBounds(9, 9, 5), turn_seconds=0)
    residency = Residency(loader, queue, max_resident=max_resident)
    return Machine(store, engine, registry, loader, residency, queue, tmp_path)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return machine_of(tmp_path, EchoEngine())


@dataclass
class ReadingEngine(EchoEngine):
    """Reads ready files, as vLLM's does: each has to be whole when it is loaded."""

    ready: list[bytes | None] = field(default_factory=list)

    async def load(self, adapter: LoadedAdapter) -> None:
        if adapter.ready is not None:
            read_ready(adapter.ready)
        self.ready.append(adapter.ready and adapter.ready.read_bytes())
        await super().load(adapter)


@pytest.fixture
async def reading(tmp_path: Path) -> Machine:
    machine = machine_of(tmp_path, ReadingEngine(replace(TINY_MODEL, ready_form=FORM)))
    await machine.loader.warm()
    return machine


def ready_file(machine: Machine, version: AdapterVersion) -> Path:
    folder = machine.store.path(version.digest)
    return folder.with_name(f"{folder.name}.ready") / FORM.file_name


# ---- whose fault it is


async def test_file_that_is_missing_here_is_not_the_versions_fault(machine: Machine) -> None:
    version = machine.publish()
    weights = machine.weights(version)
    content = weights.read_bytes()
    weights.unlink()

    with pytest.raises(MachineFault) as told:
        await machine.load(version)

    assert str(machine.store.root) not in str(told.value), "tenants see this"
    assert told.value.retry_after_seconds
    assert machine.registry.state(version) is PUBLISHED
    assert machine.registry.reason(version).startswith("not_loaded: the artifact")
    assert machine.is_at_rest(version)

    weights.write_bytes(content)
    machine.loader.try_again(version)
    await machine.load(version)
    assert machine.registry.state(version) is READY
    assert machine.registry.reason(version) == ""


async def test_byte_that_flips_on_disk_after_the_first_load_is_never_loaded(
    machine: Machine,
) -> None:
    version = machine.publish()
    await machine.load(version)
    await machine.residency.drain(version)  # as when others need the room
    weights = machine.weights(version)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(MachineFault):
        await machine.load(version)

    assert machine.registry.state(version) is PUBLISHED
    assert "is damaged" in machine.registry.reason(version)
    assert machine.engine.loads == [str(version)]

    weights.write_bytes(content)
    machine.loader.try_again(version)
    await machine.load(version)
    assert machine.registry.state(version) is READY


async def test_damaged_file_is_not_hashed_again_for_each_request(machine: Machine) -> None:
    version = machine.publish()
    machine.weights(version).write_bytes(b"")
    with pytest.raises(MachineFault):
        await machine.load(version)
    machine.weights(version).unlink()  # so that another look would say another thing

    with pytest.raises(MachineFault) as told:
        await machine.load(version)

    assert "is damaged" in told.value.reason


@pytest.mark.parametrize("flaw", ["refused", "without_effect"])
async def test_version_that_is_refused_has_failed(machine: Machine, flaw: str) -> None:
    version = machine.publish()
    getattr(machine.engine, flaw).add(str(version))

    with pytest.raises(AdapterUnavailable) as refused:
        await machine.load(version)

    assert not isinstance(refused.value, MachineFault)
    assert machine.registry.state(version) is FAILED
    assert machine.is_at_rest(version)


async def test_those_who_wait_for_a_version_that_is_refused_do_not_try_it_one_by_one(
    machine: Machine,
) -> None:
    version = machine.publish()
    machine.engine.without_effect.add(str(version))
    for _ in range(3):
        with pytest.raises(AdapterUnavailable) as refused:
            await machine.load(version)
        assert refused.value.code == "no_effect"
    assert machine.engine.loads == [str(version)]

    machine.engine.without_effect.clear()
    machine.loader.try_again(version)  # as when it is promoted again
    await machine.load(version)
    assert machine.registry.state(version) is READY


async def test_refusal_of_a_file_that_is_damaged_by_then_is_the_machines_fault(
    tmp_path: Path,
) -> None:
    async def damage() -> None:
        machine.weights(version).write_bytes(b"")
        raise AdapterUnavailable("The engine refuses it: its header is wrong.")

    machine = machine_of(tmp_path, BreakingEngine(on_load=damage))
    version = machine.publish()

    with pytest.raises(MachineFault):
        await machine.load(version)

    assert machine.registry.state(version) is PUBLISHED
    assert "is damaged" in machine.registry.reason(version)


async def test_what_another_server_has_ready_stays_so_whatever_goes_wrong_here(
    machine: Machine,
) -> None:
    missing, refused = machine.publish(), machine.publish()
    machine.registry.states |= {missing.lora_id: READY, refused.lora_id: READY}
    machine.weights(missing).unlink()
    machine.engine.refused.add(str(refused))

    for version in (missing, refused):
        with pytest.raises(MachineFault):
            await machine.load(version)

        assert machine.registry.state(version) is READY
        assert machine.is_at_rest(version)


async def test_version_that_was_retired_meanwhile_is_not_loaded(machine: Machine) -> None:
    version = machine.publish()
    machine.registry.states[version.lora_id] = RETIRED

    with pytest.raises(VersionRetired):
        await machine.load(version)

    assert machine.engine.loads == []
    assert machine.is_at_rest(version)


# ---- however a load ends


@dataclass
class BreakingEngine(EchoEngine):
    """Does with the next load or score what it is told to."""

    on_load: Callable[[], Awaitable[None]] | None = None
    on_score: Callable[[], Awaitable[None]] | None = None

    async def load(self, adapter: LoadedAdapter) -> None:
        await super().load(adapter)
        if self.on_load is not None:
            await self.on_load()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if self.on_score is not None and request.adapter is not None:
            await self.on_score()
        async for delta in super().generate(request):
            yield delta


async def _raise_os_error() -> None:
    raise OSError(28, "No space left on device")


async def _raise_store_error() -> None:
    raise StoreError("no room in TMPDIR")


async def _raise_the_unforeseen() -> None:
    raise ZeroDivisionError("float division by zero")


async def _die() -> None:
    raise EngineDead("The engine died.")


async def _hang() -> None:
    await asyncio.Event().wait()


ENDS = [_raise_os_error, _raise_store_error, _raise_the_unforeseen, _die, _hang]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", ["on_load", "on_score"])
async def test_load_that_fails_in_any_way_leaves_nothing_behind_and_comes_again(
    tmp_path: Path, step: str, end: Callable[[], Awaitable[None]]
) -> None:
    engine = BreakingEngine()
    # Long enough for loads that go well, on a machine that is busy.
    machine = machine_of(tmp_path, engine, timeout_seconds=1.0 if end is _hang else 30.0)
    version, other = machine.publish(), machine.publish("globex")
    setattr(engine, step, end)

    with pytest.raises(Exception):  # noqa: B017, PT011 - each in its way
        await machine.load(version)

    await until(lambda: machine.is_at_rest(version), 10)
    assert machine.registry.state(version) is PUBLISHED
    assert machine.registry.reason(version)
    setattr(engine, step, None)
    await machine.load(other)
    machine.loader.try_again(version)
    await machine.load(version)
    assert machine.registry.state(version) is READY


async def test_load_that_takes_too_long_names_the_setting(tmp_path: Path) -> None:
    engine = BreakingEngine(on_load=_hang)
    machine = machine_of(tmp_path, engine, timeout_seconds=0.05)
    version = machine.publish()

    with pytest.raises(MachineFault):
        await machine.load(version)

    assert "after 0.05 s (engine.load_timeout_seconds)" in machine.registry.reason(version)


async def until_loaded(machine: Machine, version: AdapterVersion) -> None:
    async with asyncio.timeout(10):
        while not machine.residency.is_resident(version):
            machine.loader.try_again(version)
            with suppress(MachineFault):
                await machine.load(version)
            await asyncio.sleep(0.01)  # for the end of the thread that was stuck


async def test_disk_that_is_stuck_ends_the_load_and_not_the_version(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, EchoEngine(), timeout_seconds=1.0)
    version = machine.publish()
    machine.store.slow.add(version.digest)

    with pytest.raises(MachineFault):
        await machine.load(version)

    assert "not read after 1 s" in machine.registry.reason(version)
    assert machine.is_at_rest(version)
    for another in (machine.publish(), machine.publish(), machine.publish(), machine.publish()):
        machine.store.slow.add(another.digest)
        with pytest.raises(MachineFault):
            await machine.load(another)
        assert "still being read after 1 s" in machine.registry.reason(another)
    await machine.load(machine.publish("globex"))  # there are threads for the others

    machine.store.may_read.set()
    await until(lambda: version.digest in machine.store.verified, 10)
    await until_loaded(machine, version)


@pytest.mark.parametrize("away", [LOADING, READY])
async def test_version_whose_state_cannot_be_kept_is_not_served_and_comes_again(
    machine: Machine, away: AdapterState
) -> None:
    version = machine.publish()
    machine.registry.away_for = {away, PUBLISHED}

    with pytest.raises(MachineFault):
        await machine.load(version)

    assert machine.is_at_rest(version)
    machine.registry.away_for = set()
    await machine.loader.say_unsaid()
    assert machine.registry.state(version) is PUBLISHED
    machine.loader.try_again(version)
    await machine.load(version)
    assert machine.registry.state(version) is READY


async def test_failure_that_could_not_be_kept_is_kept_later(machine: Machine) -> None:
    version = machine.publish()
    machine.engine.refused.add(str(version))
    machine.registry.away_for = {FAILED}
    with pytest.raises(AdapterUnavailable):
        await machine.load(version)
    assert machine.registry.state(version) is LOADING

    with pytest.raises(StoreError):
        await machine.loader.say_unsaid()
    machine.registry.away_for = set()
    await machine.loader.say_unsaid()

    assert machine.registry.state(version) is FAILED
    assert machine.registry.reason(version).startswith("adapter_refused")


async def test_load_that_is_given_up_as_the_server_ends_leaves_the_engine(tmp_path: Path) -> None:
    engine = BreakingEngine(on_load=_hang)
    machine = machine_of(tmp_path, engine)
    version = machine.publish()
    asking = asyncio.create_task(machine.load(version))
    await until(lambda: version.lora_id in engine.loaded, 10)

    await machine.residency.close()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert version.lora_id not in engine.loaded
    await machine.loader.say_unsaid()
    assert machine.registry.state(version) is PUBLISHED


async def test_engine_that_is_down_costs_no_reading_of_files(machine: Machine) -> None:
    version = machine.publish()
    machine.engine.is_alive = False

    with pytest.raises(EngineDead):
        await machine.load(version)

    assert machine.store.verified == []


# ---- who waits for whom


async def test_slow_disk_of_one_tenant_holds_up_no_other_and_only_its_own_next(
    machine: Machine,
) -> None:
    slow, next_one = machine.publish("acme"), machine.publish("acme")
    others = [machine.publish(tenant) for tenant in ("globex", "initech")]
    machine.store.slow.add(slow.digest)
    waiting = [
        asyncio.create_task(machine.loader.load(version, _at_once)) for version in (slow, next_one)
    ]
    try:
        for other in others:
            await asyncio.wait_for(machine.loader.load(other, _at_once), 15)
        assert not any(task.done() for task in waiting)
        assert next_one.digest not in machine.store.verified
    finally:
        machine.store.may_read.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 15)


async def test_files_are_read_while_another_adapter_is_put_into_the_engine(
    tmp_path: Path,
) -> None:
    may_load = asyncio.Event()

    async def wait() -> None:
        await may_load.wait()

    engine = BreakingEngine(on_load=wait)
    machine = machine_of(tmp_path, engine)
    slow, other = machine.publish("acme"), machine.publish("globex")
    first = asyncio.create_task(machine.load(slow))
    await until(lambda: slow.lora_id in engine.loaded, 10)

    second = asyncio.create_task(machine.load(other))

    await until(lambda: other.digest in machine.store.verified, 10)
    assert not first.done()
    may_load.set()
    await asyncio.gather(first, second)
    assert engine.loads == [str(slow), str(other)]


@asynccontextmanager
async def _at_once(adapter: LoadedAdapter) -> AsyncIterator[None]:
    yield


# ---- ready files


async def test_version_that_was_published_ready_is_loaded_without_its_artifact(
    reading: Machine,
) -> None:
    version = reading.publish()
    for file in reading.store.path(version.digest).iterdir():
        file.unlink()

    await reading.load(version)
    await reading.residency.drain(version)
    await reading.load(version)

    assert reading.registry.state(version) is READY
    assert reading.store.verified == []
    assert reading.engine.loads == [str(version)] * 2


async def test_byte_that_flips_in_a_ready_file_is_mended_before_each_load(
    reading: Machine,
) -> None:
    version = reading.publish()
    path = ready_file(reading, version)
    sound = path.read_bytes()
    for loads in (1, 2):  # also of what has passed before
        path.chmod(0o600)
        path.write_bytes(sound[:-3] + bytes([sound[-3] ^ 8]) + sound[-2:])

        await reading.load(version)

        assert reading.store.verified == [version.digest] * loads
        assert isinstance(reading.engine, ReadingEngine)
        assert reading.engine.ready == [sound] * loads
        await reading.residency.drain(version)


async def test_version_from_before_ready_files_gets_one_at_its_first_load(
    reading: Machine,
) -> None:
    version = reading.publish()
    ready_file(reading, version).unlink()

    await reading.load(version)
    await reading.residency.drain(version)
    await reading.load(version)

    assert reading.store.verified == [version.digest]
    assert read_ready(ready_file(reading, version)).form == FORM


async def test_version_is_loaded_where_no_ready_file_can_be_kept(reading: Machine) -> None:
    version = reading.publish()
    ready_file(reading, version).unlink()
    ready_file(reading, version).parent.rmdir()
    ready_file(reading, version).parent.write_text("in the way")

    await reading.load(version)
    await reading.residency.drain(version)
    await reading.load(version)

    assert reading.store.verified == [version.digest] * 2
    assert isinstance(reading.engine, ReadingEngine)
    assert reading.engine.ready == [None, None]


async def test_refusal_of_a_ready_file_of_other_weights_is_the_machines_fault(
    reading: Machine,
) -> None:
    version, other = reading.publish(), reading.publish()
    path = ready_file(reading, version)
    sound = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(ready_file(reading, other).read_bytes())
    reading.engine.refused = {str(version)}

    with pytest.raises(MachineFault):
        await reading.load(version)

    assert reading.registry.state(version) is PUBLISHED
    assert "was made again" in reading.registry.reason(version)
    assert path.read_bytes() == sound
    reading.engine.refused.clear()
    reading.loader.try_again(version)
    await reading.load(version)


async def test_ready_version_is_checked_against_the_model_that_is_served(
    reading: Machine, tmp_path: Path
) -> None:
    version = reading.publish()
    served = machine_of(tmp_path, reading.engine, max_rank=1)

    with pytest.raises(AdapterUnavailable, match="needs rank 2"):
        await served.load(version)
    assert served.registry.state(version) is FAILED
