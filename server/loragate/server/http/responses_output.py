"""The items of a response as they come about, delta by delta, and the events that tell of them."""

from collections.abc import Iterator, Sequence

from loragate.server.core import Delta, TokenLogprob, ToolCallDelta
from loragate.server.http.responses_objects import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    CallItem,
    Event,
    Item,
    ItemEvent,
    Logprob,
    MessageItem,
    OutputText,
    PartEvent,
    ReasoningDeltaEvent,
    ReasoningDoneEvent,
    ReasoningItem,
    ReasoningText,
    TextDeltaEvent,
    TextDoneEvent,
    TopLogprob,
)


class Output:
    """Text, reasoning and function calls in the order in which they came, each an item.

    An item of text is complete when another begins; calls, which a model may write side by side,
    when the answer is. Items change as they grow: whoever wants an event as it is writes it before
    asking for the next.
    """

    def __init__(self, response_id: str, most_logprobs: int | None) -> None:
        """`most_logprobs` alternatives are told of each token of text; of None, no scores are."""
        self._id = response_id
        self._most_logprobs = most_logprobs
        self.items: list[Item] = []
        self.reasoning_tokens = 0
        self._pieces: dict[int, list[str]] = {}  # of each item that is not complete
        self._scores: list[Logprob] = []  # of the text that is under way
        self._text_index: int | None = None  # of the item of text or reasoning that is under way
        self._calls: dict[int, int] = {}  # from a call's number to its item's
        # Of tokens whose text is held back: it shows later whether they are of text.
        self._held: list[TokenLogprob] = []
        self._held_tokens = 0

    def push(self, delta: Delta) -> Iterator[Event]:
        self._held += delta.logprobs
        self._held_tokens += len(delta.token_ids)
        if delta.reasoning:
            if not (delta.text or delta.tool_calls):
                self.reasoning_tokens += self._held_tokens
            yield from self._add_reasoning(delta.reasoning)
        if delta.text:
            yield from self._add_text(delta.text)
        for piece in delta.tool_calls:
            yield from self._add_call(piece)
        if delta.reasoning or delta.text or delta.tool_calls:
            self._held, self._held_tokens = [], 0

    def finish(self, *, is_cut: bool) -> Iterator[Event]:
        """Completes what is under way; `is_cut` says that its last item is not whole."""
        if not self.items:
            yield from self._begin_text(MessageItem(self._new_id("msg"), []))
        last = len(self.items) - 1
        for index in sorted(self._pieces):
            yield from self._complete(index, is_cut=is_cut and index == last)

    def break_off(self) -> None:
        """Leaves what is under way incomplete, as far as it came."""
        for index, pieces in self._pieces.items():
            item = self.items[index]
            self._fill(item, "".join(pieces))
            item.status = "incomplete"

    def _add_text(self, text: str) -> Iterator[Event]:
        index = self._text_index
        if index is None or not isinstance(self.items[index], MessageItem):
            yield from self._begin_text(MessageItem(self._new_id("msg"), []))
            index = len(self.items) - 1
        scores = self._told(self._held)
        self._pieces[index].append(text)
        self._scores += scores
        yield TextDeltaEvent(
            type="response.output_text.delta",
            item_id=self.items[index].id,
            output_index=index,
            delta=text,
            logprobs=scores,
        )

    def _add_reasoning(self, text: str) -> Iterator[Event]:
        index = self._text_index
        if index is None or not isinstance(self.items[index], ReasoningItem):
            yield from self._begin_text(ReasoningItem(self._new_id("rs"), []))
            index = len(self.items) - 1
        self._pieces[index].append(text)
        yield ReasoningDeltaEvent(
            type="response.reasoning_text.delta",
            item_id=self.items[index].id,
            output_index=index,
            delta=text,
        )

    def _add_call(self, piece: ToolCallDelta) -> Iterator[Event]:
        if piece.index not in self._calls:
            yield from self._complete_text()
            own_id = self._new_id("fc")
            item = CallItem(own_id, piece.id or f"call_{own_id}", piece.name or "")
            self._calls[piece.index] = len(self.items)
            yield self._begin(item)
        index = self._calls[piece.index]
        self._pieces[index].append(piece.arguments)
        if piece.arguments:
            yield ArgumentsDeltaEvent(
                type="response.function_call_arguments.delta",
                item_id=self.items[index].id,
                output_index=index,
                delta=piece.arguments,
            )

    def _begin_text(self, item: MessageItem | ReasoningItem) -> Iterator[Event]:
        yield from self._complete_text()
        self._text_index = len(self.items)
        yield self._begin(item)
        part = OutputText("", []) if isinstance(item, MessageItem) else ReasoningText("")
        yield PartEvent(
            type="response.content_part.added",
            item_id=item.id,
            output_index=self._text_index,
            part=part,
        )

    def _begin(self, item: Item) -> Event:
        index = len(self.items)
        self.items.append(item)
        self._pieces[index] = []
        return ItemEvent(type="response.output_item.added", output_index=index, item=item)

    def _complete_text(self) -> Iterator[Event]:
        if self._text_index is not None:
            index, self._text_index = self._text_index, None
            yield from self._complete(index, is_cut=False)

    def _complete(self, index: int, *, is_cut: bool) -> Iterator[Event]:
        item, text = self.items[index], "".join(self._pieces.pop(index))
        self._fill(item, text)
        item.status = "incomplete" if is_cut else "completed"
        if isinstance(item, CallItem):
            yield ArgumentsDoneEvent(
                type="response.function_call_arguments.done",
                item_id=item.id,
                output_index=index,
                name=item.name,
                arguments=text,
            )
        else:
            yield from _text_done(item, index)
        yield ItemEvent(type="response.output_item.done", output_index=index, item=item)

    def _fill(self, item: Item, text: str) -> None:
        match item:
            case CallItem():
                item.arguments = text
            case MessageItem():
                item.content = [OutputText(text, self._scores)]
                self._scores = []
            case ReasoningItem():
                item.content = [ReasoningText(text)]

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._id}-{len(self.items)}"

    def _told(self, entries: Sequence[TokenLogprob]) -> list[Logprob]:
        most = self._most_logprobs
        if most is None:
            return []
        return [
            Logprob(
                entry.token,
                entry.logprob,
                list(entry.token.encode()),
                [
                    TopLogprob(top.token, top.logprob, list(top.token.encode()))
                    for top in entry.top[:most]
                ],
            )
            for entry in entries
        ]


def _text_done(item: MessageItem | ReasoningItem, index: int) -> Iterator[Event]:
    part = item.content[0]
    if isinstance(part, OutputText):
        yield TextDoneEvent(
            type="response.output_text.done",
            item_id=item.id,
            output_index=index,
            text=part.text,
            logprobs=part.logprobs,
        )
    else:
        yield ReasoningDoneEvent(
            type="response.reasoning_text.done",
            item_id=item.id,
            output_index=index,
            text=part.text,
        )
    yield PartEvent(
        type="response.content_part.done", item_id=item.id, output_index=index, part=part
    )
