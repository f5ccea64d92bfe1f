"""The program that compiles a constraint, to see what it costs: see `child_process.loop`.

It uses the library that the engine's core compiles with, in the same way, and then follows the
grammar for some tokens: there are grammars that compile at once and take seconds for each token,
during which the engine does nothing else.
"""

import importlib
import json
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any, Final, NoReturn

from loragate.adapters.child_process.loop import Job, Refused, serve
from loragate.server.engine.grammars.bounds import ConstraintRefused, check_constraint

_CACHE_BYTES: Final = (
    64 * 2**20
)  # of parts that many grammars share, such as strings up to a length
_MOST_KEPT_BYTES: Final = 64 * 2**20  # of one grammar, which the core holds while it is used
_TOKENS: Final = 128
# Of processor time, on top of the engine's step and so for everybody. Usual grammars take a
# hundredth of the first for a token, large ones a half.
_MOST_SECONDS: Final = 0.020  # for a token, on average
_MOST_STEP_SECONDS: Final = 0.100  # for any one
_MOST_WALK_SECONDS: Final = _TOKENS * _MOST_SECONDS
# What takes longer with each token has no end: from this on, where each quarter of a walk takes so
# many times what the one before took.
_GROWING_SECONDS: Final = 0.003
_GROWTH: Final = 1.15
_MOST_WALK_BYTES: Final = 64 * 2**20
# How the library begins what it says: the time and a place in its source.
_PLACE: Final = re.compile(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ")


def main() -> NoReturn:
    serve(_prepare)


def _prepare(preparation: dict[str, Any]) -> Job:
    xgrammar = _import_alone()
    vocabulary = xgrammar.TokenizerInfo.deserialize_json(preparation["vocabulary"])
    compiler = _Compiler(xgrammar, vocabulary)
    # What the first grammar would wait for: a part of every schema.
    compiler.compile("json_schema", '{"type": "object"}')

    def compile_and_follow(job: dict[str, str]) -> None:
        try:
            check_constraint(job["kind"], job["value"])
        except ConstraintRefused as error:
            raise Refused(str(error)) from None
        compiler.check(job["kind"], job["value"])

    return compile_and_follow


class _Compiler:
    """Compiles for one vocabulary."""

    def __init__(self, xgrammar: ModuleType, vocabulary: Any) -> None:
        self._xgrammar = xgrammar
        self._vocabulary = vocabulary
        self._compiler = xgrammar.GrammarCompiler(
            vocabulary, max_threads=1, cache_enabled=True, cache_limit_bytes=_CACHE_BYTES
        )

    def check(self, kind: str, text: str) -> None:
        """Raises Refused."""
        try:
            grammar = self.compile(kind, text)
        except MemoryError:
            raise
        except Exception as error:  # the library has one class for everything
            if "bad_alloc" in str(error):
                raise
            raise Refused(_plain(error)) from None
        if grammar.memory_size_bytes > _MOST_KEPT_BYTES:
            raise Refused(
                f"compiled it takes {grammar.memory_size_bytes // 2**20} MiB, more than "
                f"{_MOST_KEPT_BYTES // 2**20} MiB; make it smaller"
            )
        before = _resident_bytes()
        for choose in (random.Random(0).choice, _first, _last):
            _check_pace(self._follow(grammar, choose))
        if _resident_bytes() - before > _MOST_WALK_BYTES:
            raise Refused("following it needs more and more memory; make it less ambiguous")

    def compile(self, kind: str, text: str) -> Any:
        match kind:
            case "json_schema":
                return self._compiler.compile_json_schema(
                    text, any_whitespace=True, separators=None
                )
            case "regex":
                return self._compiler.compile_regex(text)
            case "structural_tag":
                return self._compile_tag(text)
            case _ if is_lark(text):
                return self._compiler.compile_lark(text)
            case _:
                return self._compiler.compile_grammar(text)

    def _compile_tag(self, text: str) -> Any:
        tag = json.loads(text)
        if not isinstance(tag, dict) or "structures" not in tag:
            return self._compiler.compile_structural_tag(text)
        tags = [
            self._xgrammar.StructuralTagItem(
                begin=each["begin"], schema=json.dumps(each["schema"]), end=each["end"]
            )
            for each in tag["structures"]
        ]
        return self._compiler.compile_structural_tag(tags, tag["triggers"])

    def _follow(self, grammar: Any, choose: Callable[[Sequence[int]], int]) -> list[float]:
        """Processor seconds for each token of one text of the grammar."""
        import numpy as np

        matcher = self._xgrammar.GrammarMatcher(grammar)
        stops = set(self._vocabulary.stop_token_ids)
        mask = np.full((1, (self._vocabulary.vocab_size + 31) // 32), -1, dtype=np.int32)
        seconds: list[float] = []
        while len(seconds) < _TOKENS and sum(seconds) < _MOST_WALK_SECONDS:
            began = time.thread_time()
            matcher.fill_next_token_bitmask(mask, 0)
            took = time.thread_time() - began
            allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little"))
            tokens = [token for token in allowed.tolist() if token not in stops]
            if not tokens:
                if not seconds and not len(allowed):
                    raise Refused("no text can satisfy it")
                break
            began = time.thread_time()
            matcher.accept_token(choose(tokens))
            seconds.append(took + time.thread_time() - began)
        return seconds


def is_lark(grammar: str) -> bool:
    """Whether the engine takes a grammar for one in Lark's notation: where no line defines a rule
    with `::=`, comments aside.
    """
    return bool(grammar) and not any(
        "::=" in re.sub(r"(#|//).*$", "", line) for line in grammar.split("\n")
    )


def _check_pace(seconds: Sequence[float]) -> None:
    """Raises Refused by the processor seconds of each token of a walk."""
    if not seconds:
        return
    if sum(seconds) >= _MOST_WALK_SECONDS or max(seconds) > _MOST_STEP_SECONDS:
        raise Refused(_slow(max(seconds)))
    quarter = max(1, len(seconds) // 4)
    averages = [sum(seconds[i : i + quarter]) / quarter for i in range(0, 4 * quarter, quarter)]
    is_growing = all(later > _GROWTH * earlier for earlier, later in pairwise(averages))
    if is_growing and averages[-1] > _GROWING_SECONDS and len(seconds) == _TOKENS:
        raise Refused(_slow(averages[-1]))


def _slow(seconds: float) -> str:
    return (
        f"following it takes up to {seconds * 1000:.0f} ms for a token; make it smaller or less "
        "ambiguous"
    )


def _first(tokens: Sequence[int]) -> int:
    return tokens[0]


def _last(tokens: Sequence[int]) -> int:
    return tokens[-1]


def _plain(error: Exception) -> str:
    return _PLACE.sub("", str(error)).strip().removesuffix(".")


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _import_alone() -> ModuleType:
    """xgrammar without torch and transformers, which it needs for what is not done here: a tenth of
    the time and a fifth of the memory.
    """
    try:
        _stand_in_for_libraries()
        return importlib.import_module("xgrammar")
    except Exception:  # noqa: BLE001 - of a release that needs more of them
        for name in list(sys.modules):
            if name.partition(".")[0] in ("torch", "transformers", "xgrammar", "tvm_ffi"):
                del sys.modules[name]
        return importlib.import_module("xgrammar")


def _stand_in_for_libraries() -> None:
    found: dict[str, ModuleType | None] = {"torch": None}
    sys.modules |= found  # type: ignore[arg-type] - None is how a module is said to be missing
    importlib.import_module("tvm_ffi")  # does without, if it is missing
    for name in ("torch", "transformers"):
        sys.modules[name] = _StandIn(name)


class _StandIn(ModuleType):
    """Has every name, so that it can be imported from; each is a class without anything in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__new__": lambda kind, *arguments, **options: None})


if __name__ == "__main__":
    main()
