"""Chat templates that adapters bring: programs of whoever published them, run apart.

Each renders in a child process with bounds on its processor time and memory, so none holds up
anybody but those who use it. `rendering` renders the base model's own template within the process:
that one is the operator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from loragate.adapters.child_process.process import (
    ChildDied,
    ChildLimits,
    ChildOutOfMemory,
    ChildPool,
    ChildRefused,
    ChildTooSlow,
)
from loragate.adapters.errors import LoragateError

# What one rendering may take. A usual one takes a millisecond, of a long chat some.
TEMPLATE_LIMITS: Final = ChildLimits(seconds=1.0, memory_bytes=512 * 2**20)
# Twice the characters of the largest body that the server takes by default.
_MOST_CHARACTERS: Final = 8 * 2**20
_CHILD: Final = "loragate.adapters.rendering.template_child"


class RenderingError(LoragateError):
    """The chat template refuses these messages, or there is none; the message says which."""


class TemplateTooCostly(RenderingError):
    """The template takes too long or too much memory over these messages."""


class Templates:
    """Renders templates in child processes, which start with their first use: close it.

    May be used from several threads; as many render at once as there are children.
    """

    def __init__(self, children: int = 1, limits: ChildLimits = TEMPLATE_LIMITS) -> None:
        preparation = {"most_characters": _MOST_CHARACTERS}
        self._pool = ChildPool(_CHILD, limits, children, preparation)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the children that run."""
        return self._pool.pids

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Returns the text. Blocks for some seconds at the most, and while a child starts.

        Raises RenderingError where the template cannot, takes too long, needs too much memory or
        writes too much; ChildUnavailable where no child can be started.
        """
        job = {
            "template": template,
            "messages": list(messages),
            "tools": tools and list(tools),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "variables": dict(variables or {}),
        }
        try:
            text: Any = self._pool.do(job)
        except ChildRefused as error:
            raise RenderingError(str(error)) from None
        except ChildTooSlow as error:
            raise TemplateTooCostly(
                f"it computes for more than {error.seconds:g} s, so it may never end"
            ) from None
        except ChildOutOfMemory as error:
            raise TemplateTooCostly(
                f"it needs more than {error.memory_bytes // 2**20} MiB of memory"
            ) from None
        except (ChildDied, RecursionError):
            raise TemplateTooCostly("the process that renders it came to its end over it") from None
        return str(text)

    def try_out(self, template: str, system_prompt: str | None) -> None:
        """Renders one plain question. Raises what `render` raises."""
        turns = [{"role": "system", "content": system_prompt}] if system_prompt else []
        turns.append({"role": "user", "content": "Hello"})
        self.render(template, turns, variables={"bos_token": "", "eos_token": ""})

    def close(self) -> None:
        """Ends the children, and what they are rendering."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
