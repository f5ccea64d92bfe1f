"""Whoever waits for a change of the registry hears of it, and does not ask again and again."""

import asyncio
from pathlib import Path

import pytest

from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.admin.views import AdapterPageView
from loragate.server.admin_client.local import LocalAdmin
from loragate.server.cli.waiting import DoesNotServe, wait_until_serving
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, Served, bearer


async def revision(served: Served, **query: str) -> int:
    headers = bearer(served.admin_key)
    reply = await served.client.get("/admin/v1/revision", params=query, headers=headers)
    assert reply.status_code == 200
    return reply.json()["revision"]


async def test_the_revision_is_told_at_once_where_it_is_another(served: Served) -> None:
    now = await revision(served)
    assert now == served.registry.revision()
    async with asyncio.timeout(5):
        assert await revision(served, unlike=str(now - 1), wait_seconds="10") == now


async def test_the_next_revision_is_waited_for(served: Served) -> None:
    now = await revision(served)
    waiting = asyncio.create_task(revision(served, unlike=str(now), wait_seconds="10"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    served.registry.tenants.create_key("acme")
    async with asyncio.timeout(5):
        assert await waiting > now


async def test_where_nothing_changes_the_same_revision_is_told_in_the_end(served: Served) -> None:
    now = await revision(served)
    assert await revision(served, unlike=str(now), wait_seconds="0.01") == now


@pytest.mark.parametrize("seconds", ["-1", "11", "nan", "inf", "x"])
async def test_no_question_is_held_for_long(served: Served, seconds: str) -> None:
    reply = await served.client.get(
        "/admin/v1/revision",
        params={"wait_seconds": seconds},
        headers=bearer(served.admin_key),
    )
    assert reply.status_code == 400


class CountingAdmin(LocalAdmin):
    """Counts how often the page is asked for."""

    pages = 0

    def show(self, adapter: object) -> AdapterPageView:
        self.pages += 1
        return super().show(SUPPORT)


def test_the_command_line_asks_for_a_page_after_each_change_only(
    home: Home, tmp_path: Path
) -> None:
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
        registry.versions.publish(SUPPORT, write_adapter(tmp_path / "one", 1))
        registry.aliases.set(SUPPORT, "champion", 1)
        admin = CountingAdmin(registry, "test")
        with pytest.raises(DoesNotServe, match="no server has taken it up"):
            wait_until_serving(admin, SUPPORT, "champion", "v1", 0.35)
    assert admin.pages == 1
