"""Making a merged model for the server: the trainer's own command, in a process of its own.

The server knows no trainer, and merging takes a whole model's memory and computes for a minute,
which the server's process must not do.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import AdapterVersion

_LAST_WORDS = 500  # characters


async def run_merge(
    version: AdapterVersion, *, base: str, dtype: str, environment: Mapping[str, str]
) -> None:
    """Merges the version and keeps the result in the registry that `environment` names. Raises
    LoragateError with what the command said. Cancelled, it ends the command.
    """
    nice = shutil.which("nice")
    command = [
        *([nice, "-n", "19"] if nice else []),  # requests go on meanwhile
        *(sys.executable, "-m", "loragate.server.cli.main", "merge", str(version)),
        *("--base", base, "--dtype", "bfloat16" if dtype == "auto" else dtype, "--json"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip()[-_LAST_WORDS:]
        raise LoragateError(f"`loragate merge {version}` ended with {process.returncode}: {words}")
