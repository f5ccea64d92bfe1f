"""What PEFT made of an adapter when it was published: whether it can be told, and how sharply.

The reference beside it has the log-probabilities themselves, by which a server checks that it
serves the adapter. This says where they come from, what they can tell apart, or why there are none.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from loragate.adapters.format.reference import Tolerance

_Nats = Annotated[float, Meta(ge=0, le=1e6)]
_Text = Annotated[str, Meta(max_length=2000)]


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``loaded`` is what PEFT has loaded: the adapter as its trainer wrote it, only what was made
    of that to be published, or nothing; ``reason`` says why it was not the first.

    ``half`` and ``double`` are how far, in nats on average over the reference's tokens, the adapter
    at half and at twice its scale is from itself: what a server differs by less than is not its
    scale. ``conversion`` is how far the published adapter is from the one as it was written, where
    PEFT has loaded both.
    """

    loaded: Literal["source", "published", "nothing"]
    reason: _Text = ""
    libraries: _Text = ""
    base_model_digest: _Text = ""
    prompts: Annotated[int, Meta(ge=0)] = 0
    tokens: Annotated[int, Meta(ge=0)] = 0
    effect: _Nats = 0.0
    half: _Nats = 0.0
    double: _Nats = 0.0
    conversion: _Nats | None = None

    @property
    def tells_scale(self) -> bool:
        """Whether a wrong scale would be seen on any engine that keeps the usual tolerance."""
        return min(self.half, self.double) > Tolerance().allowed_of(self.effect)

    @property
    def sentence(self) -> str:
        """For people: what is known of the adapter without a server."""
        if self.loaded == "nothing":
            return f"not computed by PEFT: {self.reason}"
        whose = "as its trainer wrote it" if self.loaded == "source" else "as it was published"
        parts = [
            f"{self.libraries} in float32, {whose}: {self.prompts} prompts of {self.tokens} tokens",
            f"it moves log-probabilities by {self.effect:.3g} nats on average, half its scale "
            f"would be {self.half:.3g} off and twice {self.double:.3g}",
        ]
        if not self.tells_scale:
            parts.append("so little that an engine of few bits may not tell its scale")
        if self.conversion is not None:
            parts.append(f"what was repaired differs by {self.conversion:.1g}")
        if self.reason:
            parts.append(self.reason)
        return "; ".join(parts)
