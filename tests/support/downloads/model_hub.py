"""A model hub on this machine: as much of the hub's HTTP interface as a snapshot needs."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

REVISION = "0123456789abcdef0123456789abcdef01234567"


class ModelHub:
    """Serves the files under `folder` as the model `repo_id` while the context is open."""

    def __init__(self, repo_id: str, folder: Path) -> None:
        self.downloaded: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, repo_id, folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: ModelHub, repo_id: str, folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            prefix = f"/{repo_id}/resolve/{REVISION}/"
            if path.startswith(f"/api/models/{repo_id}/tree/"):
                self._send(json.dumps([_entry(folder, file) for file in _files(folder)]).encode())
            elif path.startswith(f"/api/models/{repo_id}"):
                self._send(json.dumps({"id": repo_id, "sha": REVISION, "siblings": []}).encode())
            elif path.startswith(prefix) and (folder / path.removeprefix(prefix)).is_file():
                file = folder / path.removeprefix(prefix)
                if self.command == "GET":
                    hub.downloaded.append(path.removeprefix(prefix))
                self._send(file.read_bytes(), ETag=f'"{_hash(file)}"')
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, body: bytes, **headers: str) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the test's output is the test's."""

    return Handler


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _entry(folder: Path, file: Path) -> dict[str, str | int]:
    path = file.relative_to(folder).as_posix()
    return {"type": "file", "path": path, "size": file.stat().st_size, "oid": _hash(file)}


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
