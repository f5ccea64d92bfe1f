"""Grammars in the engine's core: compiled beside its steps, and followed for a bounded time.

Whatever a step's grammars take, everybody waits for. `grammars` has tried each one before; this is
for those that are slow only with a text that nobody has tried.
"""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import (
    StructuredOutputGrammar,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend, XgrammarGrammar

logger = logging.getLogger(__name__)
_COMPILING_THREADS = 4
_NICENESS = 10
# Processor seconds that one answer's grammar may take: at once, and for each of its tokens.
_SECONDS_AT_ONCE = 0.5
_SECONDS_A_TOKEN = 0.025


def bound_grammars(manager: StructuredOutputManager) -> None:
    """Call it before the manager has seen a request."""
    manager.executor.shutdown()
    manager.executor = ThreadPoolExecutor(
        _COMPILING_THREADS, "grammars", initializer=_yield_to_steps
    )
    # What the first request would wait for, and the steps with it: the vocabulary is prepared in
    # Python, by the token.
    tokenizer: Any = manager.tokenizer
    manager.backend = BoundedBackend(
        manager.vllm_config,
        tokenizer=tokenizer,
        vocab_size=manager.vllm_config.model_config.get_vocab_size(),
    )


def _yield_to_steps() -> None:
    """Of the thread, and of those that the compiler starts from it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class BoundedBackend(XgrammarBackend):
    """vLLM's, with grammars that end their answers where they take too long."""

    def compile_grammar(
        self,
        request_type: StructuredOutputOptions,
        grammar_spec: str,
        *arguments: Any,
        **options: Any,
    ) -> StructuredOutputGrammar:
        grammar = super().compile_grammar(request_type, grammar_spec, *arguments, **options)
        assert isinstance(grammar, XgrammarGrammar)
        return BoundedGrammar(grammar.vocab_size, grammar.matcher, grammar.ctx)


@dataclass
class BoundedGrammar(XgrammarGrammar):
    """Accepts no token more once it has used up its time, which ends the answer as an error."""

    seconds: float = field(default=0.0, init=False, repr=False, hash=False)

    def fill_bitmask(self, bitmask: torch.Tensor, idx: int) -> None:
        began = time.thread_time()
        super().fill_bitmask(bitmask, idx)
        self.seconds += time.thread_time() - began

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        began = time.thread_time()
        is_accepted = super().accept_tokens(request_id, tokens)
        self.seconds += time.thread_time() - began
        if self.seconds <= _SECONDS_AT_ONCE + _SECONDS_A_TOKEN * self.num_processed_tokens:
            return is_accepted
        logger.warning(
            "the grammar of %s took %.1f s for %d tokens; the answer ends",
            request_id,
            self.seconds,
            self.num_processed_tokens,
        )
        return False
