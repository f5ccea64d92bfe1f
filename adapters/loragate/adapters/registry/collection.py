"""Removing artifacts from the disk: of retired versions, and those that nobody came to refer to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from loragate.adapters.registry.audit import record
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.needs import is_needed
from loragate.adapters.registry.tables import Artifacts, Versions
from loragate.adapters.settings import DEFAULT_ORPHANS_AFTER_SECONDS
from loragate.adapters.store import ArtifactStore

_BATCH: Final = 500  # digests in one statement


class Collection:
    """The part of `Registry` that removes files. ``actor`` is who asked, for the audit.

    An orphan is an artifact that no version, retired or not, refers to: its publication ended
    between the store and the registry. It is taken once it was not put for so many seconds, which
    are to be more than a publication takes. Only those that the store has as unsettled are looked
    at, so that a registry which is new, restored or the wrong one takes nobody's files;
    ``unreferenced`` takes all others too, which is right only where no other registry has the
    store.
    """

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._database = database
        self._store = store

    def collectable(
        self,
        *,
        orphans_after_seconds: float = DEFAULT_ORPHANS_AFTER_SECONDS,
        unreferenced: bool = False,
    ) -> tuple[str, ...]:
        """The digests of what `collect` would remove now."""
        found = {
            *self._unneeded(),
            *self._orphans(self._candidates(unreferenced), orphans_after_seconds),
        }
        return tuple(sorted(found))

    def collect(
        self,
        actor: str = "cli",
        *,
        orphans_after_seconds: float = DEFAULT_ORPHANS_AFTER_SECONDS,
        unreferenced: bool = False,
    ) -> tuple[str, ...]:
        """Remove the artifacts that nothing needs: all of their versions are retired, or of a
        deleted tenant and in no engine; and orphans. The digests of those that are gone now.

        What is LOADING, READY or DRAINING for anyone stays. It may be stopped at any moment: the
        next run goes on.
        """
        unneeded = [digest for digest in self._unneeded() if self._remove(digest, actor)]
        orphans = self._collect_orphans(actor, orphans_after_seconds, unreferenced)
        self._store.sweep()
        return tuple(sorted({*unneeded, *orphans}))

    def collect_orphans(
        self,
        actor: str = "cli",
        *,
        orphans_after_seconds: float = DEFAULT_ORPHANS_AFTER_SECONDS,
    ) -> tuple[str, ...]:
        """Remove orphans and what dead processes left in the store, and nothing that a version has
        or had: for a server, every now and then.
        """
        orphans = self._collect_orphans(actor, orphans_after_seconds, unreferenced=False)
        self._store.sweep()
        return orphans

    def _unneeded(self) -> list[str]:
        with self._database.reading() as session:
            digests = {
                *session.scalars(
                    select(Versions.digest).distinct().where(~is_needed(Versions.digest))
                ),
                *session.scalars(
                    select(Artifacts.digest).distinct().where(~is_needed(Artifacts.digest))
                ),
            }
        return sorted(digest for digest in digests if self._store.has(digest))

    def _remove(self, digest: str, actor: str) -> bool:
        # Within a change nobody can publish the digest again between the look and the removal. The
        # files themselves go with the sweep, for whose time nobody need be held up.
        with self._database.changing() as session:
            if session.scalar(select(is_needed(literal(digest)))):
                return False
            self._store.remove(digest)
            record(session, actor, "artifact.collect", digest, digest=digest)
            return True

    def _candidates(self, unreferenced: bool) -> Sequence[str]:
        return sorted(self._store.digests() if unreferenced else self._store.unsettled())

    def _orphans(self, digests: Iterable[str], older_than_seconds: float) -> Iterator[str]:
        old = [each for each in digests if self._store.unused_seconds(each) >= older_than_seconds]
        for batch in _batches(old):
            with self._database.reading() as session:
                known = _known(session, batch)
            yield from (digest for digest in batch if digest not in known)

    def _collect_orphans(
        self, actor: str, older_than_seconds: float, unreferenced: bool
    ) -> tuple[str, ...]:
        self._settle_known(self._store.unsettled())
        candidates = self._candidates(unreferenced)
        return tuple(
            digest
            for digest in self._orphans(candidates, older_than_seconds)
            if self._remove_orphan(digest, actor, older_than_seconds)
        )

    def _settle_known(self, digests: Sequence[str]) -> None:
        """For those that died after their commit, before they could say so."""
        for batch in _batches(digests):
            # Within a change, since a merged model that is replaced is unsettled within one.
            with self._database.changing() as session:
                for digest in _known(session, batch):
                    self._store.settle(digest)

    def _remove_orphan(self, digest: str, actor: str, older_than_seconds: float) -> bool:
        # A publication copies first and then commits, so the look at the registry alone could come
        # between the two. Within a change there are two cases. It has committed: then the digest is
        # known here. Or it has not: then its `put` has just made the artifact young, which
        # `remove_orphan` sees under the store's lock; and one that took longer than an orphan's
        # time finds the artifact gone within its own change, and fails there, before any version
        # refers to what is not there.
        with self._database.changing() as session:
            if _known(session, (digest,)):
                return False
            if not self._store.remove_orphan(digest, older_than_seconds):
                return False
            reason = "no version refers to it"
            record(session, actor, "artifact.collect", digest, digest=digest, reason=reason)
            return True


def _known(session: Session, digests: Sequence[str]) -> set[str]:
    """Those that any version refers to, retired or not."""
    return {
        *session.scalars(select(Versions.digest).where(Versions.digest.in_(digests))),
        *session.scalars(select(Artifacts.digest).where(Artifacts.digest.in_(digests))),
    }


def _batches(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(digests), _BATCH):
        yield digests[start : start + _BATCH]
