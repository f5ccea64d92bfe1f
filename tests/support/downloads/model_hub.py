"""A model hub on this machine: as much of the hub's HTTP interface as a snapshot needs."""

import hashlib
import json
from pathlib import Path

from support.downloads.local_server import LocalServer, QuietHandler

REVISION = "0123456789abcdef0123456789abcdef01234567"


class ModelHub(LocalServer):
    """Serves the files under `folder` as the model `repo_id` while the context is open."""

    def __init__(self, repo_id: str, folder: Path) -> None:
        self.downloaded: list[str] = []
        super().__init__(_handler(self, repo_id, folder))


def _handler(hub: ModelHub, repo_id: str, folder: Path) -> type[QuietHandler]:
    class Handler(QuietHandler):
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

    return Handler


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _entry(folder: Path, file: Path) -> dict[str, str | int]:
    path = file.relative_to(folder).as_posix()
    return {"type": "file", "path": path, "size": file.stat().st_size, "oid": _hash(file)}


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
