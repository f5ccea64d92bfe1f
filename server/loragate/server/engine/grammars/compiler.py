"""Whether a constraint on the text is one that everybody else can live with.

A schema, a grammar or a regular expression is compiled by the engine's core, whose steps wait for
it, so what a tenant sends is tried beforehand: in a child process with bounds on processor time and
memory, which yields to everything else. What was tried is remembered, and what passed costs nothing
the next time.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from loragate.adapters.child_process.process import (
    ChildDied,
    ChildLimits,
    ChildOutOfMemory,
    ChildPool,
    ChildRefused,
    ChildTooSlow,
)
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import StructuredOutput
from loragate.server.engine.grammars.bounds import (
    MOST_CHOICES,
    ConstraintRefused,
    check_size,
    choices_grammar,
)
from loragate.server.errors import InvalidRequest

logger = logging.getLogger(__name__)
_CHILD: Final = "loragate.server.engine.grammars.child"
_CHILDREN: Final = 2
_MEMORY_BYTES: Final = 512 * 2**20
# Beside an engine that takes every core, a child gets a quarter of one: the engine's steps take
# that much longer, and the child's work four times as long.
_NICENESS: Final = 5
_PATIENCE: Final = 8.0
_MOST_WAITING: Final = 64  # of one tenant, each with a constraint of its own
_MOST_REMEMBERED: Final = 4096
# Where a bound was met that depends on what else the machine does.
_FORGET_SECONDS: Final = 60.0
_NAMES: Final = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
    "structural_tag": "structural tag",
    "choice": "list of choices",
}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Why a constraint is refused, or "" where it is not; and until when that holds."""

    refusal: str = ""
    until: float = float("inf")


class Grammars:
    """Tries constraints, for one vocabulary. Belongs to one event loop; close it.

    Children start with the first constraint. Tenants take turns: of one, one constraint is tried at
    a time, so it never takes the last child from the others.
    """

    def __init__(
        self,
        describe: Callable[[], str],
        timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`describe` says the vocabulary, as `vocabulary_of` does, and is called in a thread.
        `timeout_seconds` is the processor time that one constraint may take.
        """
        self._describe = describe
        self._limits = ChildLimits(timeout_seconds, _MEMORY_BYTES, _PATIENCE, _NICENESS)
        self._clock = clock
        self._threads = FairThreads(_CHILDREN, _MOST_WAITING)
        self._pool: ChildPool | None = None
        self._making = threading.Lock()
        self._outcomes: OrderedDict[bytes, _Outcome] = OrderedDict()
        self._under_way: dict[tuple[str, bytes], asyncio.Task[_Outcome]] = {}
        self._is_closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the children that run."""
        return () if self._pool is None else self._pool.pids

    async def check(self, constraint: StructuredOutput | None, tenant: str) -> None:
        """Raises InvalidRequest for one that is malformed, too large or too slow, with the
        compiler's own words; Overloaded where too many of the tenant's wait; ChildUnavailable.
        """
        if constraint is None or constraint.kind == "json_object":
            return
        try:
            value = _text(constraint)
            check_size(constraint.kind, len(value))
        except ConstraintRefused as error:
            raise _refused(constraint, str(error)) from None
        digest = hashlib.sha256(constraint.kind.encode() + b"\0" + value).digest()
        outcome = self._remembered(digest)
        if outcome is None:
            outcome = await asyncio.shield(self._try(constraint.kind, value, digest, tenant))
        if outcome.refusal:
            raise _refused(constraint, outcome.refusal)

    def close(self) -> None:
        """Ends the children, and what they try."""
        self._is_closed = True
        self._threads.close()
        with self._making:
            if self._pool is not None:
                self._pool.close()

    def _remembered(self, digest: bytes) -> _Outcome | None:
        outcome = self._outcomes.get(digest)
        if outcome is None or outcome.until < self._clock():
            return None
        self._outcomes.move_to_end(digest)
        return outcome

    def _try(self, kind: str, value: bytes, digest: bytes, tenant: str) -> asyncio.Task[_Outcome]:
        """Requests of one tenant with the same constraint wait for one trial, which goes on where
        one of them leaves. Another tenant's has a trial of its own, which waits by itself.
        """
        key = (tenant, digest)
        if key not in self._under_way:
            task = asyncio.create_task(self._outcome_of(kind, value, digest, tenant))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._end_trial(key, done))
        return self._under_way[key]

    def _end_trial(self, key: tuple[str, bytes], done: asyncio.Task[_Outcome]) -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # told to whoever waits; nobody may

    async def _outcome_of(self, kind: str, value: bytes, digest: bytes, tenant: str) -> _Outcome:
        outcome = await self._threads.do(tenant, True, self._compile, kind, value, digest)
        self._outcomes[digest] = outcome
        while len(self._outcomes) > _MOST_REMEMBERED:
            self._outcomes.popitem(last=False)
        return outcome

    def _compile(self, kind: str, value: bytes, digest: bytes) -> _Outcome:
        """In a thread. Raises ChildUnavailable."""
        outcome = self._outcomes.get(digest)  # another tenant's trial may have ended meanwhile
        if outcome is not None and outcome.until > self._clock():
            return outcome
        text = value.decode("utf-8", "surrogatepass")
        try:
            self._children().do({"kind": kind, "value": text})
        except ChildRefused as error:
            return _Outcome(str(error))
        except ChildTooSlow as error:
            refusal = f"to try it takes more than {error.seconds:g} s; make it smaller"
        except ChildOutOfMemory as error:
            mebibytes = error.memory_bytes // 2**20
            return _Outcome(f"to try it needs more than {mebibytes} MiB; make it smaller")
        except ChildDied:
            refusal = "the compiler came to its end over it; make it simpler"
        else:
            return _Outcome()
        logger.warning("a %s was refused: %s", kind, refusal)
        return _Outcome(refusal, self._clock() + _FORGET_SECONDS)

    def _children(self) -> ChildPool:
        with self._making:
            if self._pool is None:
                preparation = {"vocabulary": self._describe()}
                self._pool = ChildPool(_CHILD, self._limits, _CHILDREN, preparation)
                if self._is_closed:
                    self._pool.close()
            return self._pool


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int) -> str:
    """What the grammars' compiler needs of a model; `size` is the number of its tokens."""
    # Comes with the engine; imports torch.
    from xgrammar import TokenizerInfo

    untyped: Any = tokenizer  # transformers hides its classes' names from type checkers
    return TokenizerInfo.from_huggingface(untyped, vocab_size=size).serialize_json()


def _text(constraint: StructuredOutput) -> bytes:
    """As the child and the engine get it. Raises ConstraintRefused by the number of choices."""
    text = constraint.value
    if constraint.kind == "choice":
        if len(constraint.choices) > MOST_CHOICES:
            raise ConstraintRefused(
                f"it has {len(constraint.choices)} choices, and may have {MOST_CHOICES}"
            )
        text = choices_grammar(constraint.choices)
    return text.encode("utf-8", "surrogatepass")


def _refused(constraint: StructuredOutput, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The {_NAMES[constraint.kind]} cannot be used: {reason}.", param=constraint.param
    )
