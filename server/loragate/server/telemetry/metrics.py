"""Prometheus metrics by tenant and adapter, with a bound on the number of label sets.

Names follow OpenTelemetry's for generative AI where they have one, in Prometheus's spelling
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/). Times are in seconds.

The label ``adapter`` has no version, so that a promotion begins no new series; which version serves
by an alias is told by ``loragate_adapter_info``.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from loragate.adapters.names import CHAMPION, AdapterVersion
from loragate.adapters.registry.listings import AdapterListing, AliasVersions
from loragate.adapters.registry.snapshot import Snapshot
from loragate.server.core import BASE, MERGED, Route
from loragate.server.telemetry.adapter_metrics import FAMILIES, AdapterMetrics
from loragate.server.telemetry.usage import Record

_OTHER = "other"
_LOAD_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PIECE_SECONDS = 0.002  # of making a text, before others have their turn
# Memory for much larger parts is asked of the kernel anew each time, page by page; for one of the
# whole text that took more time than all else.
_PART_CHARACTERS = 64 * 1024
_MOST_ALIASES = 10  # of an adapter, in `loragate_adapter_info`
_INFO = "loragate_adapter_info"
_INFO_HEADER = (
    f"# HELP {_INFO} Which version serves by an alias now; of the adapters that have figures.\n"
    f"# TYPE {_INFO} gauge\n"
)


class Metrics:
    """Owns its registry, so that two servers in one process do not share counters.

    At most `max_adapters` label sets are kept. A further one takes the place of the one that was
    used longest ago and has no request under way. What that one has counted since the last scrape
    is counted under ``other``, so that whoever adds up increases misses no request; when it comes
    back it begins at 0, as after a restart. Where all have requests under way, and where
    `max_adapters` is 0, requests are counted under ``other``.
    """

    def __init__(self, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        # By tenant and adapter, used longest ago first.
        self._sets: OrderedDict[tuple[str, str], AdapterMetrics] = OrderedDict()
        self._other = AdapterMetrics(_OTHER, _OTHER)
        self._shown: dict[tuple[str, str], AdapterMetrics] = {}  # by the last scrape
        self._changed: dict[AdapterMetrics, None] = {}  # since they were rendered
        self._snapshot: Callable[[], Snapshot] = Snapshot
        self._info: dict[tuple[str, str], tuple[AdapterListing, str]] = {}
        self._scrape: asyncio.Task[Sequence[bytes]] | None = None
        self.registry = CollectorRegistry()
        """Of all that has no label set for each adapter; a scrape asks it on the event loop."""
        self._refused = Counter(
            "loragate_requests_refused",
            "Requests of known tenants that were refused before they were read, by error code.",
            ("transport", "code"),
            registry=self.registry,
        )
        self._load = Histogram(
            "loragate_adapter_load_seconds",
            "Time to load an adapter version into the engine.",
            buckets=_LOAD_BUCKETS,
            registry=self.registry,
        )

    def follow(self, snapshot: Callable[[], Snapshot]) -> None:
        """From now on `loragate_adapter_info` tells what this snapshot says."""
        self._snapshot = snapshot

    @contextmanager
    def under_way(self, route: Route) -> Iterator[None]:
        """Counts one request as under way."""
        used = self._set_of(route)
        used.in_flight += 1
        try:
            yield
        finally:
            used.in_flight -= 1
            self._changed[used] = None

    def refuse(self, transport: str, code: str) -> None:
        """Counts one request of a tenant that was refused by its headers."""
        self._refused.labels(transport, code).inc()

    def count(self, record: Record) -> None:
        """Counts one request that has ended."""
        self._set_of(record.route).figures.count(record)

    def adapter_loaded(self, version: AdapterVersion, seconds: float) -> None:
        self._load.observe(seconds)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when Prometheus asks."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format, made at once."""
        text = _Text()
        for _ in self._write(text):
            pass
        return b"".join(text.parts)

    async def scrape(self) -> Sequence[bytes]:
        """As `text`, in parts, made by pieces of work of two milliseconds, so that streams go on
        meanwhile. Who asks while a text is made gets that one.
        """
        if self._scrape is None:
            self._scrape = asyncio.create_task(self._make_parts(), name="metrics")
            self._scrape.add_done_callback(self._end_scrape)
        # Others may wait for the same text when one of them leaves.
        return await asyncio.shield(self._scrape)

    async def _make_parts(self) -> Sequence[bytes]:
        text = _Text()
        for _ in self._write(text):
            await asyncio.sleep(0)
        return text.parts

    def _end_scrape(self, scrape: asyncio.Task[Sequence[bytes]]) -> None:
        self._scrape = None

    def _write(self, text: "_Text") -> Iterator[None]:
        """Yields where others may have their turn, and may change figures and label sets."""
        # A set that makes room meanwhile is in this text still, as it was rendered last: what it
        # has counted since is under `other` by then.
        sets = self._shown = dict(self._sets)
        sets[_OTHER, _OTHER] = self._other
        changed, self._changed = self._changed, {}
        piece = _Piece(_PIECE_SECONDS)
        for each in changed:
            if each is self._other or self._sets.get((each.tenant, each.adapter)) is each:
                each.render()
                if piece.is_over():
                    yield
                    piece.begin()
        shown = list(sets.values())
        for i, header in enumerate(FAMILIES):
            for _ in text.add(header, [each.lines[i] for each in shown]):
                if piece.is_over():
                    yield
                    piece.begin()
        info: list[str] = []
        snapshot, before, self._info = self._snapshot(), self._info, {}
        for key in sets:
            info.append(self._info_of(key, snapshot, before))
            if piece.is_over():
                yield
                piece.begin()
        for _ in text.add(_INFO_HEADER, info):
            if piece.is_over():
                yield
                piece.begin()
        text.parts.append(generate_latest(self.registry))

    def _info_of(
        self,
        key: tuple[str, str],
        snapshot: Snapshot,
        before: dict[tuple[str, str], tuple[AdapterListing, str]],
    ) -> str:
        """The lines of the aliases by which a label set's adapter serves."""
        tenant, adapter = key
        plain = adapter.removesuffix(MERGED)
        listing = snapshot.adapter(tenant, plain.removeprefix(f"{tenant}/"))
        if listing is None or plain == BASE:
            return ""
        known = before.get(key)
        if known is None or known[0] is not listing:
            mode = "unmerged" if plain == adapter else "merged"
            serving = [item for item in listing.aliases.items() if _serves(item[1], mode)]
            serving.sort(key=lambda item: (item[0] != CHAMPION, item[0]))
            known = (
                listing,
                "".join(
                    f'{_INFO}{{adapter="{adapter}",alias="{alias}",tenant="{tenant}",'
                    f'version="v{versions.serving.number}"}} 1.0\n'
                    for alias, versions in serving[:_MOST_ALIASES]
                    if versions.serving is not None
                ),
            )
        self._info[key] = known
        return known[1]

    def _set_of(self, route: Route) -> AdapterMetrics:
        """The route's label set, which is about to change."""
        key = route.tenant, _adapter_of(route)
        used = self._sets.get(key)
        if used is not None:
            self._sets.move_to_end(key)
        elif len(self._sets) < self._max_adapters or self._has_made_room():
            used = self._sets[key] = self._new_set(key)
        else:
            used = self._other
        self._changed[used] = None
        return used

    def _new_set(self, key: tuple[str, str]) -> AdapterMetrics:
        # One that made room since the last scrape goes on from where Prometheus saw it: begun at 0,
        # it could come to the same number by the next scrape, and look as if it had not moved.
        shown = self._shown.get(key)
        if shown is None:
            return AdapterMetrics(*key)
        shown.figures = shown.rendered.copy()
        return shown

    def _has_made_room(self) -> bool:
        for key, each in self._sets.items():
            if not each.in_flight:
                del self._sets[key]
                self._changed.pop(each, None)
                if each.rendered != each.figures:
                    self._other.figures.add_growth(each.rendered, each.figures)
                    self._changed[self._other] = None
                return True
        return False


class _Text:
    """A long text in parts of some size."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def add(self, header: str, lines: Sequence[str]) -> Iterator[None]:
        """Adds a family; yields after each part."""
        mean = sum(map(len, lines)) // len(lines) + 1 if lines else 1
        step = max(1, _PART_CHARACTERS // mean)
        for first in range(0, len(lines), step):
            text = "".join(lines[first : first + step])
            self.parts.append((text if first else header + text).encode())
            yield


class _Piece:
    """Some time of work on the event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        self._until = time.perf_counter() + self._seconds

    def is_over(self) -> bool:
        return time.perf_counter() >= self._until


def _adapter_of(route: Route) -> str:
    """`acme/support`, `acme/support+merged` or `base`."""
    version = route.version
    if version is None:
        return BASE
    return f"{version.tenant}/{version.name}{MERGED if route.mode == 'merged' else ''}"


def _serves(versions: AliasVersions, mode: str) -> bool:
    return versions.serving is not None and versions.serving_mode == mode
