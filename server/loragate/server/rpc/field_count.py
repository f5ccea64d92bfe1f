"""How many fields the bytes of a message have, counted before it is decoded.

Protobuf's decoder turns two bytes into a hundred and holds the interpreter's lock until it is
through: four megabytes of empty messages are 200 MB and stop every other thread for a tenth of a
second. This walk over the bytes ends at the first field too many, and lets others run meanwhile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from loragate.server.errors import InvalidRequest
from loragate.server.gateway import bounds

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MORE = bytes(range(128, 256))  # bytes after which a number goes on
_MOST_DEPTH = 100  # protobuf's own limit


class _Broken(Exception):
    """The bytes are no message; the decoder says why."""


def check_fields(
    message: bytes,
    kind: Descriptor,
    most_fields: int = bounds.MOST_WIRE_FIELDS,
    most_numbers: int = bounds.MOST_PROMPT_TOKENS,
) -> None:
    """Raises InvalidRequest where a message of this `kind` has more fields, or more numbers in its
    lists, than one request may have. Bytes that are no message pass: decoding refuses them.
    """
    walk = _Walk(message, most_fields, most_numbers)
    try:
        walk.message(kind, 0, len(message), 0)
    except _Broken:
        return


@dataclass(slots=True)
class _Walk:
    data: bytes
    most_fields: int
    most_numbers: int
    fields: int = 0
    numbers: int = 0
    position: int = 0
    kinds: dict[str, Mapping[int, FieldDescriptor]] = field(default_factory=dict)

    def message(self, kind: Descriptor, start: int, end: int, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise _Broken
        known = self.kinds.get(kind.full_name)
        if known is None:
            known = self.kinds[kind.full_name] = dict(kind.fields_by_number)
        self.position = start
        while self.position < end:
            self.fields += 1
            if self.fields > self.most_fields:
                raise InvalidRequest(
                    f"The message has more than {self.most_fields} fields, those of the messages "
                    "in it included; send fewer messages, tools or values.",
                    code="request_too_complex",
                )
            tag = self.number()
            self.field(known.get(tag >> 3), tag & 7, depth)
        if self.position != end:
            raise _Broken

    def field(self, known: FieldDescriptor | None, wire_type: int, depth: int) -> None:
        if wire_type == _VARINT:
            self.number()
        elif wire_type == _LENGTH:
            end = self.number()
            end += self.position
            if end > len(self.data):
                raise _Broken
            if known is not None and known.message_type is not None:
                self.message(known.message_type, self.position, end, depth + 1)
            elif known is not None and known.type not in _TEXTS:
                self.count_numbers(end)
            self.position = end
        elif wire_type in _SIZES:
            self.position += _SIZES[wire_type]
        # What is left begins or ends a group, which no message here has: its fields come one by
        # one, as if they were the message's own.

    def count_numbers(self, end: int) -> None:
        """Of a list of numbers in one piece; what ends one is a byte below 128."""
        self.numbers += len(self.data[self.position : end].translate(None, delete=_MORE))
        if self.numbers > self.most_numbers:
            raise InvalidRequest(
                f"The message has more than {self.most_numbers} token ids; send fewer.",
                code="request_too_complex",
            )

    def number(self) -> int:
        value = shift = 0
        data, position = self.data, self.position
        try:
            while True:
                byte = data[position]
                position += 1
                value |= (byte & 127) << shift
                if byte < 128:
                    self.position = position
                    return value
                shift += 7
                if shift > 63:
                    raise _Broken
        except IndexError:
            raise _Broken from None


_TEXTS = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})
