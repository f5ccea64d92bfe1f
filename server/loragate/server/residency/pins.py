"""Versions that stay in the engine, whoever else is asked for: as many as there is room for."""

import asyncio

from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import Snapshot
from loragate.server.core import ACTOR
from loragate.server.residency.prefetch import Prefetch
from loragate.server.residency.residency import Residency


class Pins:
    """Follows the registry's pins, first pinned first, and says there which it cannot keep."""

    def __init__(
        self, registry: Registry, residency: Residency, prefetch: Prefetch, most: int
    ) -> None:
        """`most` versions can stay: beside them there has to be room for one in each slot."""
        self._registry = registry
        self._residency = residency
        self._prefetch = prefetch
        self._most = most
        self._said: dict[AdapterVersion, str] = {}  # why each pin is refused, "" where it is not

    def hold(self, snapshot: Snapshot) -> tuple[AdapterVersion, ...]:
        """What is pinned and has room stays, and is loaded before all else; returns it."""
        kept = snapshot.pinned()[: self._most]
        self._residency.pin(kept)
        resident = set(self._residency.resident)
        self._prefetch.want((version for version in kept if version not in resident), first=True)
        return kept

    async def keep(self, snapshot: Snapshot) -> None:
        """As `hold`, and tells the registry. Raises StoreError."""
        kept = self.hold(snapshot)
        words = {version: "" if version in kept else self._refusal for version in snapshot.pinned()}
        for version, word in words.items():
            if self._said.get(version) != word:
                await asyncio.to_thread(self._registry.pins.refuse, version, word, ACTOR)
        self._said = words

    @property
    def _refusal(self) -> str:
        return (
            f"this server has room for {self._most} pinned versions (engine.max_cpu_loras less "
            "engine.max_loras), and others were pinned before; unpin one of them, or raise "
            "engine.max_cpu_loras"
        )
