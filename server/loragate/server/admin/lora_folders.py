"""Adapters from folders of the server's own machine, loaded and unloaded as vLLM's operators do it.

Loading is publishing the folder as the adapter's next version and promoting it: the publish check,
the registry and the check in the engine are those of `loragate adapter publish` and `promote`.
"""

import asyncio
from functools import partial
from pathlib import Path

from loragate.adapters.errors import (
    AdapterNotFound,
    AliasMovedOn,
    AliasNotServing,
    VersionFailed,
)
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion
from loragate.adapters.registry.records import AdapterRecord
from loragate.adapters.registry.states import AdapterState
from loragate.server.admin.administration import Administration
from loragate.server.errors import InvalidRequest


class LoraFolders:
    """Takes folders below `root` alone, since whoever has the admin key may be on another machine;
    an empty one is none. A version may take `wait_seconds` to serve.
    """

    def __init__(self, administration: Administration, root: str, wait_seconds: float) -> None:
        self._administration = administration
        self._root = root
        self._wait_seconds = wait_seconds

    async def load(self, adapter: AdapterName, path: str, *, in_place: bool) -> AdapterVersion:
        """Returns once the version serves; what served before goes on until then. `in_place`
        allows that something does.

        Besides what publishing and promoting raise: InvalidRequest for a path that may not be
        taken, VersionFailed where the version does not pass, AliasNotServing where it takes too
        long, and AliasMovedOn where another one was promoted meanwhile.
        """
        if not in_place and await self._is_served(adapter):
            raise InvalidRequest(
                f"The lora adapter '{adapter}' has already been loaded; set load_inplace to true "
                "to have another version take over from the one that serves.",
                param="load_inplace",
            )
        find = partial(_folder_below, self._root, path)
        version = await self._administration.publish_folder(adapter, find)
        await self._administration.set_alias(
            adapter, CHAMPION, version.number, "loaded by its folder"
        )
        await self._until_serving(adapter, version)
        return version

    async def unload(self, adapter: AdapterName) -> None:
        """Requests by its name are refused from now on; its versions stay in the registry. Raises
        AdapterNotFound, AliasNotFound where it is not served, and TrialUnderWay.
        """
        await self._administration.delete_alias(adapter, CHAMPION)

    async def _is_served(self, adapter: AdapterName) -> bool:
        try:
            record = await self._administration.show(adapter)
        except AdapterNotFound:
            return False
        alias = record.aliases.get(CHAMPION)
        return alias is not None and alias.serving is not None

    async def _until_serving(self, adapter: AdapterName, version: AdapterVersion) -> None:
        state = AdapterState.PUBLISHED
        try:
            async with asyncio.timeout(self._wait_seconds):
                while True:
                    seen = self._administration.snapshot
                    record = await self._administration.show(adapter)
                    if _serves(record, version):
                        return
                    state = _state(record, version)
                    await self._administration.change(seen)
        except TimeoutError:
            raise AliasNotServing(
                adapter.tenant, adapter.name, CHAMPION, f"v{version.number}", state
            ) from None


def _folder_below(root: str, path: str) -> Path:
    """The folder that `path` names, links in it followed. Raises InvalidRequest."""
    if not root:
        raise InvalidRequest(
            "This server loads no adapters from its own folders: server.lora_path_root is empty. "
            "Set it to the folder below which they lie, or send the files with "
            "`loragate adapter publish`.",
            param="lora_path",
        )
    try:
        allowed = Path(root).resolve(strict=True)
    except OSError as error:
        raise InvalidRequest(
            f"server.lora_path_root is {root}, which cannot be read ({error.strerror}).",
            param="lora_path",
        ) from None
    try:
        folder = (allowed / path).resolve()
    except (OSError, RuntimeError, ValueError):  # of circles of links, and of a zero byte
        raise InvalidRequest(
            f"lora_path is {path[:200]!r}, which is no path.", param="lora_path"
        ) from None
    if not folder.is_relative_to(allowed):
        raise InvalidRequest(
            f"lora_path is '{path[:200]}', which lies outside of server.lora_path_root, {root}; "
            "copy the adapter's folder there.",
            param="lora_path",
        )
    return folder


def _serves(record: AdapterRecord, version: AdapterVersion) -> bool:
    """Raises VersionFailed and AliasMovedOn where it never will."""
    alias = record.aliases.get(CHAMPION)
    tenant, name, number = version.tenant, version.name, f"v{version.number}"
    if alias is None or alias.desired != version:
        desired = "nothing" if alias is None else f"v{alias.desired.number}"
        raise AliasMovedOn(tenant, name, CHAMPION, number, desired)
    if _state(record, version) is AdapterState.FAILED:
        reason = next(each.reason for each in record.versions if each.version == version)
        raise VersionFailed(tenant, name, number, reason)
    return alias.serving == version


def _state(record: AdapterRecord, version: AdapterVersion) -> AdapterState:
    return next(each.state for each in record.versions if each.version == version)
