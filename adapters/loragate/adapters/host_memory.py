"""Memory of the machine, or of the container or service that this process is in. In bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


def free_host_bytes(groups: "ControlGroups | None" = None) -> int:
    """What the machine or, if that is less, the container or service can still give."""
    free = [group.free_bytes for group in (groups or ControlGroups()).limited()]
    return max(0, min([psutil.virtual_memory().available, *free]))


def host_bytes(groups: "ControlGroups | None" = None) -> int:
    """All that the machine or, if that is less, the container or service has."""
    limits = [group.limit_bytes for group in (groups or ControlGroups()).limited()]
    return min([psutil.virtual_memory().total, *limits])


@dataclass(frozen=True, slots=True)
class LimitedGroup:
    limit_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """Linux's control groups, version 2 or 1, of which this process is in one and all above it.

    A container sees its own group at the root of `mount`; a service of systemd has its own below.
    """

    mount: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def limited(self) -> Iterator[LimitedGroup]:
        """Those with a limit of memory."""
        for folder, limit_file, usage_file, cache in self._files():
            try:
                limit = int((folder / limit_file).read_text())
                usage = int((folder / usage_file).read_text())
            except (OSError, ValueError):  # no such group, or no limit: "max"
                continue
            # Pages of files that the kernel gives back before anybody has to end count as used.
            yield LimitedGroup(limit, limit - max(0, usage - _statistic(folder, cache)))

    def _files(self) -> Iterator[tuple[Path, str, str, str]]:
        try:
            lines = self.membership.read_text().splitlines()
        except OSError:
            lines = []
        paths = {
            controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)
        }
        for folder in _and_above(self.mount, paths.get("", "/")):
            yield folder, "memory.max", "memory.current", "inactive_file"
        for folder in _and_above(self.mount / "memory", paths.get("memory", "/")):
            yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _and_above(mount: Path, group: str) -> Iterator[Path]:
    parts = group.strip("/").split("/")
    folder = mount if ".." in parts else mount.joinpath(*parts)  # ..: outside of this namespace
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _statistic(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return int(dict(line.split(maxsplit=1) for line in lines)[name])
    except (OSError, KeyError, ValueError):
        return 0
