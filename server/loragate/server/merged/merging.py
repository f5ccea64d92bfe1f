"""Making a merged model for the server: the trainer's own command, in a process of its own.

The server knows no trainer, and merging takes a whole model's memory and computes for a minute,
which the server's process must not do.
"""

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import AdapterVersion
from loragate.server.concurrency import bound_process

_LAST_WORDS = 500  # characters
_CHUNK_BYTES = 4096
_WORDS_SECONDS = 1.0  # for what a process said last to arrive after its end


async def run_merge(
    version: AdapterVersion,
    *,
    base: str,
    dtype: str,
    environment: Mapping[str, str],
    timeout_seconds: float,
) -> None:
    """Merges the version and keeps the result in the registry that `environment` names. Raises
    LoragateError with what the command said, or that it took too long. Cancelled, it ends the
    command; however this process ends, so does the command.
    """
    what = f"loragate merge {version}"
    arguments = (
        *("merge", str(version), "--base", base),
        *("--dtype", "bfloat16" if dtype == "auto" else dtype, "--json"),
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            status, words = await run_bound("loragate.server.cli.main", arguments, environment)
    except TimeoutError:
        raise LoragateError(
            f"`{what}` took more than {timeout_seconds:g} s and was ended "
            "(merged.merge_timeout_seconds); raise that, or run it elsewhere, then ask again"
        ) from None
    if status != 0:
        raise LoragateError(f"`{what}` ended with {status}: {words}")


async def run_bound(
    module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, str]:
    """Runs a Python module of low priority, as a process that ends with this one; its exit status,
    and the last that it said on stderr. Cancelled, it kills the process and all that it started.
    """
    nice = shutil.which("nice")
    process = await asyncio.create_subprocess_exec(
        *([nice, "-n", "19"] if nice else []),  # requests go on meanwhile
        *(sys.executable, "-m", bound_process.__name__, module, *arguments),
        stdin=PIPE,  # its end is told by this
        stdout=DEVNULL,
        stderr=PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        return await _ended(process)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _ended(process: Process) -> tuple[int, str]:
    said = bytearray()
    listening = asyncio.create_task(_listen(process, said))
    try:
        status = await process.wait()
        # Not to its end: what the process has started may hold the pipe open longer than it lives.
        await asyncio.wait({listening}, timeout=_WORDS_SECONDS)
    finally:
        listening.cancel()
    return status, said.decode(errors="replace").strip()[-_LAST_WORDS:]


async def _listen(process: Process, said: bytearray) -> None:
    """Keeps the end of what the process says, so that it is never held up by a full pipe."""
    assert process.stderr is not None
    while chunk := await process.stderr.read(_CHUNK_BYTES):
        said += chunk
        del said[: -4 * _LAST_WORDS]
