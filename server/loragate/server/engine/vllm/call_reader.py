"""Tells text from tool calls while an answer comes: text at once, a call once it is complete."""

import re
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from loragate.server.core import Delta, ToolCallDelta
from loragate.server.engine.vllm.call_formats import Call, CallFormat

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class CallRules:
    """What a request says of its calls: of which functions, whether there has to be one, whether
    there may be `several`. `has_short_ids` is for templates that take no others.
    """

    names: Collection[str]
    is_forced: bool = False
    several: bool = True
    has_short_ids: bool = False


class CallReader:
    """A `ToolCallParser` for one choice. The same text gives the same, however it is divided.

    Text is never lost: what turns out to be no call of an offered function is content. Where a call
    is forced and was cut off behind its name, it is a call without arguments.
    """

    def __init__(self, call_format: CallFormat, rules: CallRules) -> None:
        self._format = call_format
        self._rules = rules
        self._held = ""  # begins where a call may
        self._beside = ""  # is no text where a call comes before or behind it
        self._has_text = False  # since the last call
        self._is_at_start = True
        self._calls = 0

    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        text, calls = self.read(delta.text, is_last=delta.finish_reason is not None)
        first = self._calls - len(calls)
        return text, tuple(
            ToolCallDelta(first + i, call.id or self._new_id(), call.name, call.arguments)
            for i, call in enumerate(calls)
        )

    def read(self, text: str, *, is_last: bool) -> tuple[str, Sequence[Call]]:
        """The content and the calls that this text completes."""
        self._held += text
        said: list[str] = []
        calls: list[Call] = []
        while self._held:
            start = self._find(is_last=is_last)
            self._say(self._held[:start], said)
            self._held = self._held[start:]
            reading = self._format.read(self._held, is_last=is_last) if self._held else None
            if reading is None:
                break
            if reading.calls:
                self._take(reading.calls, calls)
                self._say(reading.content, said)
            else:
                self._say(self._held[: reading.length], said)
            self._held = self._held[reading.length :]
        if is_last and not self._calls:
            said.append(self._beside)
            if self._rules.is_forced and (name := self._begun("".join(said))):
                self._take([Call(name, "{}")], calls)
                said.clear()
        return "".join(said), calls

    def _find(self, *, is_last: bool) -> int:
        start = self._format.find(self._held, is_last=is_last)
        if not self._format.only_at_start:
            return start
        is_at_start = self._is_at_start and not self._held[:start].strip()
        return start if is_at_start else len(self._held)

    def _say(self, text: str, said: list[str]) -> None:
        if not self._has_text and not text.strip(self._format.filler):
            self._beside += text
            return
        said.append(self._beside + text)
        self._beside = ""
        self._has_text = True
        self._is_at_start = False

    def _take(self, found: Sequence[Call], calls: list[Call]) -> None:
        room = len(found) if self._rules.several else 1 - self._calls
        calls += found[:room]
        self._calls += len(found[:room])
        self._beside = ""
        self._has_text = self._is_at_start = False

    def _begun(self, text: str) -> str | None:
        """The function whose forced call was cut off; None where not even its name is there, as
        vLLM and OpenAI have it, though it is the only one that can have been meant.
        """
        names = "|".join(map(re.escape, self._rules.names))
        found = re.search(rf"(?<!\w)({names})(?!\w)", text)
        return found[0] if found else None

    def _new_id(self) -> str:
        if self._rules.has_short_ids:
            return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
        return f"chatcmpl-tool-{secrets.token_hex(8)}"
