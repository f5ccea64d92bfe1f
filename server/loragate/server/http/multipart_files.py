"""The files of a `multipart/form-data` body, piece by piece as they arrive: nothing is kept.

It knows the wire format only; which files are welcome is decided by whoever takes the pieces.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from loragate.server.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


async def read_files(
    content_type: str, body: AsyncIterator[bytes]
) -> AsyncIterator[tuple[str, bytes]]:
    """Yields (file name, piece); an empty file yields one empty piece. Raises InvalidRequest."""
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise InvalidRequest(
            "The adapter's files have to be sent as multipart/form-data, each as a file: "
            "curl -F files=@adapter_config.json -F files=@adapter_model.safetensors."
        )
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for chunk in body:
            parser.write(chunk)
            for piece in parts.take():
                yield piece
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"The multipart body is broken: {error}.") from None
    if not parts.is_complete:
        raise InvalidRequest("The multipart body broke off before its end; send it again.")


class _Parts:
    """What the parser's callbacks have found since the last `take`."""

    def __init__(self) -> None:
        self.is_complete = False
        self._found: list[tuple[str, bytes]] = []
        self._file = ""
        self._seen: set[str] = set()
        self._field = bytearray()
        self._value = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_field,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_file,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def take(self) -> list[tuple[str, bytes]]:
        found, self._found = self._found, []
        return found

    def _begin_part(self) -> None:
        self._file = ""

    def _add_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._file = options.get(b"filename", b"").decode("utf-8", errors="replace")
        self._field.clear()
        self._value.clear()

    def _begin_file(self) -> None:
        if not self._file:
            raise InvalidRequest(
                "A part of the body is no file; send each file of the adapter with its file name."
            )
        # Their pieces would look like those of one file.
        if self._file in self._seen:
            raise InvalidRequest(f"The file {self._file!r} came twice; send each file once.")
        self._seen.add(self._file)
        self._found.append((self._file, b""))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._found.append((self._file, data[start:end]))

    def _end(self) -> None:
        self.is_complete = True
