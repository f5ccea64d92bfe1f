"""Sets of character pieces of many texts in little memory, and which of them are near.

A piece is five characters, kept as a hash of 32 bits, so that a set takes four bytes for each
character of its text. Two sets with a common share of at least t have one of each other's rarest
pieces in common (prefix filtering), so that few pairs are compared and none by chance. Where many
sets have the same rarest piece, as rows of one template do, only `_MOST_WITH` of them are compared
with the others: that bounds the work, and makes it grow with the number of texts, not its square.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from loragate.trainer.data.settings import Track, untracked

PIECE = 5  # characters
SHORTEST_CONTAINED = 10  # pieces; less may be in a longer text by chance
_MOST_WITH = 64  # sets with the same rarest piece that are compared with others
_MOST_HOLDERS = 500  # sets with the same piece among which the nearest is looked for
_TRIED = 20  # sets that share most with another, of which the nearest is measured exactly
_CHUNK = 2_000  # sets whose candidates are looked for at once
_PAIRS = 20_000  # that are compared at once
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class PieceSets:
    """A row for each text, a column for each different piece, 1 where the text has the piece. The
    columns are in the order of their rarity, the rarest first.
    """

    matrix: csr_matrix
    sizes: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "PieceSets":
        rows = [hashed_pieces(text) for text in texts]
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        every = np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint32)
        del rows
        found, counts = np.unique(every, return_counts=True)
        rank = np.empty(len(found), dtype=np.int32)
        rank[np.lexsort((found, counts))] = np.arange(len(found), dtype=np.int32)
        columns = rank[np.searchsorted(found, every)]
        matrix = csr_matrix(
            (
                np.ones(len(columns), dtype=np.int32),
                columns,
                np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)]),
            ),
            shape=(len(texts), len(found)),
        )
        matrix.sort_indices()
        return cls(matrix, sizes)

    def near(
        self, similarity: float, track: Track = untracked, *, contained: bool
    ) -> Iterator[tuple[int, int]]:
        """Yields pairs of rows, the larger first, with at least this Jaccard index; with
        `contained` also those where the larger has that share of the smaller's pieces.
        """
        prefixes = self._prefixes(similarity)
        starts = range(0, len(self.sizes), _CHUNK)
        for start in track(starts, description="Comparing rows"):
            shared = (self.matrix[start : start + _CHUNK] @ prefixes.T).tocoo()
            one, other = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
            # A pair is found from its larger side; of equal sizes, from the later one.
            larger = (self.sizes[one] > self.sizes[other]) | (
                (self.sizes[one] == self.sizes[other]) & (one > other)
            )
            if not contained:
                larger &= self.sizes[other] >= similarity * self.sizes[one]
            one, other = one[larger], other[larger]
            for at in range(0, len(one), _PAIRS):
                yield from self._confirm(
                    one[at : at + _PAIRS], other[at : at + _PAIRS], similarity, contained
                )

    def likenesses(self, one: np.ndarray, other: np.ndarray, *, contained: bool) -> np.ndarray:
        """The likeness of each pair of rows, from 0 to 1; the Jaccard index, or with `contained`
        the share of the smaller set, if it is large enough, that the other has.
        """
        common = np.asarray(
            self.matrix[one].multiply(self.matrix[other]).sum(axis=1), dtype=np.float64
        ).ravel()
        smaller = np.minimum(self.sizes[one], self.sizes[other])
        either = self.sizes[one] + self.sizes[other] - common
        found = common / either
        if contained:
            found = np.where(smaller >= SHORTEST_CONTAINED, common / smaller, found)
        return found

    def _confirm(
        self, one: np.ndarray, other: np.ndarray, similarity: float, contained: bool
    ) -> Iterator[tuple[int, int]]:
        near = self.likenesses(one, other, contained=contained) >= similarity
        yield from zip(one[near].tolist(), other[near].tolist(), strict=True)

    def _prefixes(self, similarity: float) -> csr_matrix:
        """Of each set the rarest pieces, of which a set that is near must have one."""
        # A little below the limit, so that no rounding loses a pair.
        needed = np.ceil(similarity * self.sizes - 1e-9).astype(np.int64)
        kept = np.minimum(self.sizes, self.sizes - needed + 1)
        starts = self.matrix.indptr[:-1].astype(np.int64)
        total = int(kept.sum())
        within = np.arange(total) - np.repeat(np.cumsum(kept) - kept, kept)
        columns = self.matrix.indices[np.repeat(starts, kept) + within]
        rows = np.repeat(np.arange(len(self.sizes)), kept)
        columns, rows = _thinned(columns, rows, _MOST_WITH)
        return csr_matrix(
            (np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=self.matrix.shape
        )


def nearest(texts: Sequence[str], others: Sequence[str]) -> list[tuple[float, int]]:
    """For each text the likeness of the nearest of the others, from 0 to 1, and its index, which is
    -1 where no other has a piece of it.

    Other means than `near`: the sets that share most pieces are found and then measured.
    """
    if not texts or not others:
        return [(0.0, -1)] * len(texts)
    sets = PieceSets.of([*texts, *others])
    held = sets.matrix[len(texts) :].tocoo()
    columns, rows = _thinned(held.col, held.row, _MOST_HOLDERS)
    holders = csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=held.shape)
    found: list[tuple[float, int]] = []
    for start in range(0, len(texts), _CHUNK // 4):
        end = min(start + _CHUNK // 4, len(texts))
        shared = csr_matrix(sets.matrix[start:end] @ holders.T)
        for row in range(end - start):
            one = np.asarray(shared.data)[shared.indptr[row] : shared.indptr[row + 1]]
            candidates = shared.indices[shared.indptr[row] : shared.indptr[row + 1]]
            if not len(candidates):
                found.append((0.0, -1))
                continue
            # Of sets with as many common pieces the smaller is nearer.
            order = np.lexsort((sets.sizes[candidates + len(texts)], np.negative(one)))[:_TRIED]
            tried = candidates[order].astype(np.int64)
            near = sets.likenesses(
                np.full(len(tried), start + row), tried + len(texts), contained=True
            )
            best = int(near.argmax())
            found.append((float(near[best]), int(tried[best])))
    return found


def _thinned(columns: np.ndarray, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Without all but `most` rows of a column."""
    order = np.argsort(columns, kind="stable")
    columns, rows = columns[order], rows[order]
    _, first, counts = np.unique(columns, return_index=True, return_counts=True)
    place = np.arange(len(columns)) - np.repeat(first, counts)
    return columns[place < most], rows[place < most]


def hashed_pieces(text: str) -> np.ndarray:
    """The sorted hashes of a text's pieces, each once; a text shorter than a piece is one."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    codes = codes.astype(np.uint64)
    if len(codes) < PIECE:
        codes = np.concatenate([codes, np.zeros(PIECE - len(codes), dtype=np.uint64)])
    count = len(codes) - PIECE + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for at in range(PIECE):
        mixed = (mixed ^ codes[at : at + count]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))
