"""A small OpenAI-shaped endpoint on a port of its own, whose answers a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, object]
"""A status, and what is answered as JSON; text goes out as it is."""


@dataclass
class JudgeServer:
    """`reply` gets a request's body. `asked` are all bodies, `keys` the authorization headers."""

    reply: Callable[[dict[str, Any]], Reply]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def said(text: object) -> Reply:
    """An answer in OpenAI's shape; what is no text is said as JSON."""
    content = text if isinstance(text, str) else json.dumps(text)
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}}]}


@contextmanager
def judge_server(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[JudgeServer]:
    served = JudgeServer(reply)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                served.asked.append(body)
                served.keys.append(self.headers.get("authorization"))
            assert self.path == "/v1/chat/completions"
            status, answer = served.reply(body)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Clients leave in the middle of answers here."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
