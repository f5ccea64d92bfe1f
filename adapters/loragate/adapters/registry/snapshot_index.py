"""What few adapters have of something, in order: aliases to be moved, pins, merged models to be
served.

A snapshot holds one for each, so that whoever follows the registry looks at what there is to do and
not at all that exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar

Item = TypeVar("Item")
AdapterKey: TypeAlias = tuple[str, str]
"""An adapter's tenant and name."""
Placed: TypeAlias = tuple[tuple[Any, ...], Item]
"""An item with what it is ordered by."""


def _none() -> Mapping[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SnapshotIndex(Generic[Item]):
    """Immutable; made from an older one by `renewed`. ``items`` are in order."""

    items: tuple[Item, ...] = ()
    _by_adapter: Mapping[AdapterKey, tuple[Placed[Item], ...]] = field(default_factory=_none)

    def renewed(
        self, changed: Mapping[AdapterKey, tuple[Placed[Item], ...]]
    ) -> SnapshotIndex[Item]:
        """With what these adapters have now; the same one where they have what they had."""
        moved = {
            adapter: placed
            for adapter, placed in changed.items()
            if placed != self._by_adapter.get(adapter, ())
        }
        if not moved:
            return self
        by_adapter = {**self._by_adapter, **moved}
        kept = {adapter: placed for adapter, placed in by_adapter.items() if placed}
        ordered = sorted((pair for placed in kept.values() for pair in placed), key=_place)
        return SnapshotIndex(tuple(item for _, item in ordered), MappingProxyType(kept))


def _place(placed: Placed[Any]) -> tuple[Any, ...]:
    return placed[0]
