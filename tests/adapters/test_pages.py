from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loragate.adapters.errors import InvalidCursor, KeyNotFound
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.pages import Page
from loragate.adapters.registry.registry import Registry, UsageRow

TENANTS = ("acme", "globex", "initech", "umbrella", "wayne")
Part = list[tuple[str, object]]  # each row with the cursor that goes on after it


def tenants(registry: Registry, page: Page) -> Part:
    return [(row.tenant, row) for row in registry.tenants.list(page)]


def keys(registry: Registry, page: Page) -> Part:
    return [(row.key_id, row) for row in registry.tenants.list_keys("acme", page)]


def adapters(registry: Registry, page: Page) -> Part:
    return [(str(row), str(row)) for row in registry.adapters(None, page)]


def adapters_of_one(registry: Registry, page: Page) -> Part:
    return [(str(row), str(row)) for row in registry.adapters("acme", page)]


def usage(registry: Registry, page: Page) -> Part:
    return [(f"{row.tenant}/{row.adapter}", row) for row in registry.usage.totals(page=page)]


def audit(registry: Registry, page: Page) -> Part:
    rows = registry.audit.list("acme", page.limit, page.after_number())
    return [(str(row.id), row) for row in rows]


@pytest.fixture
def filled(registry: Registry, write_adapter: Callable[..., Path]) -> Registry:
    """Five tenants, the first with five keys and three adapters, all with usage of two kinds."""
    folder, now = write_adapter(), datetime(2026, 1, 31, tzinfo=UTC)
    for tenant in TENANTS:
        registry.tenants.create(tenant)
        for name in ("support", "router", "writer") if tenant == "acme" else ("support",):
            registry.versions.publish(AdapterName(tenant, name), folder)
        used = ("base", f"{tenant}/support@v1", "base")
        registry.usage.add(
            [
                UsageRow("r", now, tenant, each, "", "http", 1, 1, 0, None, 1.0, "stop")
                for each in used
            ]
        )
    for name in "abcd":
        registry.tenants.create_key("acme", name)
    return registry


def test_parts_put_together_are_the_whole_listing(filled: Registry):
    for read in (tenants, keys, adapters, adapters_of_one, usage, audit):
        whole = read(filled, Page())
        assert len(whole) >= 3
        for limit in (1, 2, 3):
            found: Part = []
            while part := read(filled, Page(limit, found[-1][0] if found else "")):
                assert len(part) <= limit
                found += part
            assert found == whole, (read, limit)


def test_listing_goes_on_after_a_row_that_is_gone_by_now(filled: Registry):
    filled.tenants.delete("globex")

    rest: Sequence[str] = [row.tenant for row in filled.tenants.list(Page(2, "globex"))]

    assert rest == ["initech", "umbrella"]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "٣", "9" * 40])
def test_a_cursor_that_is_no_number_is_refused(after: str):
    with pytest.raises(InvalidCursor, match="go on after"):
        Page(1, after).after_number()


def test_a_cursor_of_another_listing_is_refused(filled: Registry):
    [other] = filled.tenants.list_keys("globex")
    with pytest.raises(KeyNotFound):
        filled.tenants.list_keys("acme", Page(1, other.key_id))
    for read in (filled.adapters, lambda tenant, page: filled.usage.totals(page=page)):
        with pytest.raises(InvalidCursor):
            read(None, Page(1, "acme"))
