"""A bound on the processor time of a chat template that is trusted, over messages that are not.

A thread cannot be stopped from outside, so the template's thread looks at its own clock: whenever
a line of a template begins, and whenever anything is called. Loops and recursion end there. What
one operation does within itself, such as multiplying a string into gigabytes, is not seen: what is
not trusted is for `templates`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_JINJA_FILENAME: Final = "<template>"


class TemplateTooSlow(Exception):
    """The template has used up its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"it computes for more than {self.seconds:g} s, so it may never end"


@contextmanager
def template_time(seconds: float) -> Iterator[None]:
    """Templates that are rendered inside, in this thread, raise TemplateTooSlow after ``seconds``.

    Counted is the thread's processor time, so that a busy machine makes no template slow. Doubles
    a template's time, so it is for large requests.
    """
    end = time.thread_time() + seconds

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TemplateTooSlow(seconds)
        return look if frame.f_code.co_filename == _JINJA_FILENAME else None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
