"""A server is killed at each step of its work on a wish, and started again on the same home.

Whatever the step: the alias serves the old version or the new one, with the weights that its header
names; no artifact is lost; nobody is left half-way; and what was wished for comes true by itself.
"""

import contextlib
import json
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import httpx
import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.adapters.registry.registry import AdapterState, Registry
from loragate.adapters.store import ArtifactStore
from support.engines.stepping_engine import weights_digest
from support.models.one_layer import write_adapter
from support.server.mortal_server import Fate, serve_mortal
from support.server.processes import ServerProcess, launched, started
from support.server.small_server import SUPPORT, bearer, furnish
from support.waiting import wait_for

Start = Callable[..., AbstractContextManager[ServerProcess]]
SETTLES_SECONDS = 20.0
ADMIN = f"/admin/v1/tenants/{SUPPORT.tenant}/adapters/{SUPPORT.name}"
AT_REST = {AdapterState.PUBLISHED, AdapterState.READY, AdapterState.RETIRED, AdapterState.FAILED}

NOT_WISHED = "@champion alias.set written"
SERVED = "@{new} READY committed"  # in one with the alias
PROMOTION = (
    NOT_WISHED,
    "@champion alias.set committed",
    "@{new} LOADING written",
    "@{new} LOADING committed",
    "@{new} load",  # the static gate has passed it
    "@{new} loaded",
    "@{new} score",
    "@{new} scored",
    "@{new} READY written",
    "@champion alias.serve written",
    "@{old} DRAINING written",
    SERVED,
    "@champion alias.serve committed",
    "@{old} DRAINING committed",
    "@{old} unload",
    "@{old} unloaded",
    "@{old} PUBLISHED written",
    "@{old} PUBLISHED committed",
)
NOT_RETIRING = "@{new} version.retiring written"
RETIREMENT = (
    NOT_RETIRING,
    "@{new} version.retiring committed",
    "@{new} DRAINING written",
    "@{new} DRAINING committed",
    "@{new} unload",
    "@{new} unloaded",
    "@{new} RETIRED written",
    "@{new} RETIRED committed",
)


@dataclass(frozen=True)
class World:
    """A home where acme/support@v1 serves, and servers on it, one after another."""

    home: Home
    model: Path
    forks: ForkServerContext
    key: str
    log: Path

    @property
    def fate(self) -> Fate:
        return Fate(self.home.root)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.home.artifacts)

    def registry(self) -> Registry:
        return Registry(self.home.database_url, self.store)

    def server(self) -> AbstractContextManager[ServerProcess]:
        return self._run(started)

    def doomed_server(self) -> AbstractContextManager[ServerProcess]:
        """One that need not live to be ready."""
        return self._run(launched)

    def _run(self, start: Start) -> AbstractContextManager[ServerProcess]:
        arguments = self.home.root, self.model
        quick = {"LORAGATE_REGISTRY_POLL_SECONDS": "0.02"}
        return start(self.forks, serve_mortal, *arguments, log=self.log, environment=quick)

    def publish(self) -> int:
        with self.registry() as registry:
            seed = 1 + registry.versions.show(SUPPORT).versions[0].version.number
            folder = write_adapter(self.home.root.parent / f"v{seed}", seed)
            return registry.versions.publish(SUPPORT, folder).number

    def serving(self) -> int:
        with self.registry() as registry:
            return registry.snapshot().resolve("acme", "support", "champion").number

    def state(self, number: int) -> AdapterState:
        with self.registry() as registry:
            versions = registry.versions.show(SUPPORT).versions
        return next(found.state for found in versions if found.version.number == number)

    def answering(self, server: ServerProcess) -> int:
        """Which version answers by the alias; its weights have to be those that it names."""
        body = {"model": "support", "messages": [{"role": "user", "content": "hello"}]}
        url = f"http://{server.http}/v1/chat/completions"
        reply = httpx.post(url, json=body, headers=bearer(self.key))
        assert reply.status_code == 200, reply.text
        digest, name = reply.headers["x-loragate-digest"], reply.headers["x-loragate-adapter"]
        text = reply.json()["choices"][0]["message"]["content"]
        assert text == weights_digest(self.store.path(digest))
        with self.registry() as registry:
            versions = registry.versions.show(SUPPORT).versions
        return next(
            found.version.number
            for found in versions
            if (str(found.version), found.version.digest) == (name, digest)
        )

    def kill(self, server: ServerProcess, step: str, method: str, path: str, body: object) -> None:
        """Asks the server itself for a change, which it does not survive."""
        self.fate.last_step.write_text(f"{SUPPORT}{step}")
        url, headers = f"http://{server.http}{ADMIN}{path}", bearer(self.home.admin_key({}))
        with contextlib.suppress(httpx.TransportError):  # it may die before it answers
            httpx.request(method, url, json=body, headers=headers).raise_for_status()
        assert server.ended(SETTLES_SECONDS) == -signal.SIGKILL, self.log.read_text()
        self.fate.last_step.unlink()

    def is_settled(self) -> bool:
        """Whether every target is served, and the engine holds what the registry calls READY."""
        with self.registry() as registry:
            snapshot = registry.snapshot()
        entries = snapshot.entries("acme", "support").values()
        ready = [str(e.version) for e in entries if e.state is AdapterState.READY]
        return (
            all(target.desired == target.serving for target in snapshot.desired_aliases())
            and all(entry.state in AT_REST for entry in entries)
            and not any(snapshot.is_retiring(entry.version) for entry in entries)
            and json.loads(self.fate.in_engine.read_text()) == sorted(ready)
        )

    def check(self, server: ServerProcess, old: int, new: int) -> None:
        """A server that has just started serves one of them, and soon the new one, for good."""
        assert self.answering(server) in (old, new)
        assert wait_for(self.is_settled, SETTLES_SECONDS), self.log.read_text()
        assert self.serving() == new
        assert wait_for(lambda: self.answering(server) == new, 10)  # it reads the registry again
        with self.registry() as registry:
            for version in registry.snapshot().versions():
                self.store.verify(version.digest)


@pytest.fixture
def world(forks: ForkServerContext, base: BaseModel, tmp_path: Path) -> World:
    furnished = furnish(tmp_path / "home")
    key = furnished.keys["acme"]
    return World(Home(furnished.root), base.path, forks, key, tmp_path / "log")


def test_promotion_survives_a_kill_at_every_step(world: World) -> None:
    old = new = 1
    for step in PROMOTION:
        with world.server() as server:
            world.check(server, old, new)
            old, new = new, world.publish()
            at = step.format(new=f"v{new}", old=f"v{old}")
            world.kill(server, at, "PUT", "/aliases/champion", {"version": f"v{new}"})

        has_moved = PROMOTION.index(step) >= PROMOTION.index(SERVED)
        assert world.serving() == (new if has_moved else old)
        if step == NOT_WISHED:
            new = old
    with world.server() as server:
        world.check(server, old, new)


@pytest.mark.parametrize("step", ["alias.rollback", "alias.serve"])
@pytest.mark.parametrize("moment", ["written", "committed"])
def test_rollback_survives_a_kill(world: World, step: str, moment: str) -> None:
    two = world.publish()
    with world.registry() as registry:
        registry.aliases.set(SUPPORT, "champion", two)
    with world.server() as server:
        world.check(server, 1, two)
        world.kill(server, f"@champion {step} {moment}", "POST", "/rollback", None)

    assert world.serving() == (1 if (step, moment) == ("alias.serve", "committed") else two)
    with world.server() as server:
        world.check(server, two, two if (step, moment) == ("alias.rollback", "written") else 1)


def test_retirement_survives_a_kill_at_every_step(world: World) -> None:
    new, retired = 1, list[int]()
    for step in RETIREMENT:
        with world.server() as server:
            world.check(server, 1, 1)
            new = world.publish()
            with world.registry() as registry:
                registry.aliases.set(SUPPORT, "challenger", new)
                assert wait_for(world.is_settled, SETTLES_SECONDS)
                registry.aliases.delete(SUPPORT, "challenger")
            world.kill(server, step.format(new=f"v{new}"), "POST", f"/versions/v{new}/retire", None)
        if step != NOT_RETIRING:
            retired.append(new)
    with world.server() as server:
        world.check(server, 1, 1)

        found = [number for number in range(1, new + 1) if world.state(number) == "RETIRED"]
        assert found == retired
        with world.registry() as registry:
            assert len(registry.artifacts.collect()) == len(retired)
        world.check(server, 1, 1)


def test_server_that_is_killed_again_while_it_recovers_still_recovers(world: World) -> None:
    two = world.publish()
    with world.server() as server:
        world.check(server, 1, 1)
        world.kill(server, "@v2 loaded", "PUT", "/aliases/champion", {"version": "v2"})
    world.fate.last_step.write_text(f"{SUPPORT}@v2 READY written")
    with world.doomed_server() as server:
        assert server.ended(SETTLES_SECONDS) == -signal.SIGKILL, world.log.read_text()
    world.fate.last_step.unlink()

    with world.server() as server:
        world.check(server, 1, two)
