import os
from pathlib import Path

import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.format.files import inspect
from loragate.adapters.registry.collection import Collection
from loragate.adapters.store import ArtifactStore
from loragate.server.config import RegistryConfig
from support.models.one_layer import write_adapter
from support.server.small_server import ServeWith
from support.waiting import until

LONG_AGO = 1_000_000_000.0  # seconds since 1970
OFTEN = {"registry": RegistryConfig(poll_seconds=0.02, collect_seconds=0.02)}


def abandon(folder: Path) -> Path:
    """As a process that was killed leaves it, by its name alone: nobody holds its lock."""
    folder.mkdir()
    (folder / "half").write_text("of an adapter")
    os.utime(folder, (LONG_AGO, LONG_AGO))
    return folder


async def test_a_server_removes_what_killed_processes_left_and_nothing_else(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    async with serve_with(**OFTEN) as served:
        store = ArtifactStore(served.home.artifacts)
        recorded = {version.digest for version in served.registry.snapshot().versions()}
        young = store.put(inspect(write_adapter(tmp_path / "young", 7)))
        orphan = store.put(inspect(write_adapter(tmp_path / "orphan", 8)))
        for digest in (orphan, *recorded):
            os.utime(store.path(digest), (LONG_AGO, LONG_AGO))
        upload = abandon(served.home.root / "loragate-held-incoming-x")

        await until(lambda: not store.has(orphan) and not upload.exists(), 5)

        assert set(store.digests()) == {*recorded, young}
        assert (await served.chat()).status_code == 200


async def test_a_collection_that_fails_is_tried_again(
    serve_with: ServeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail(self: Collection, actor: str, *, orphans_after_seconds: float) -> tuple[str, ...]:
        nonlocal calls
        calls += 1
        raise StoreError("the disk is gone")

    monkeypatch.setattr(Collection, "collect_orphans", fail)
    async with serve_with(**OFTEN) as served:
        await until(lambda: calls >= 2, 5)
        assert (await served.chat()).status_code == 200


async def test_a_server_that_is_told_so_collects_nothing(serve_with: ServeWith) -> None:
    never = {"registry": RegistryConfig(poll_seconds=0.02, collect_seconds=0)}
    async with serve_with(**never) as served:
        names = [task.name for task in served.server.background.all]
        assert "registry snapshot" in names
        assert "artifact collection" not in names
