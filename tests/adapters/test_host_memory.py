"""The host's memory, within the limits of the control groups that a process is in."""

from pathlib import Path

import psutil
import pytest

from loragate.adapters.host_memory import ControlGroups, free_host_bytes, host_bytes

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path) -> ControlGroups:
    mount = tmp_path / "cgroup"
    mount.mkdir()
    return ControlGroups(mount, tmp_path / "membership")


def write_group(folder: Path, limit: str, usage: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_without_a_limit_it_is_the_machine_s(groups: ControlGroups) -> None:
    write_group(groups.mount, "max", 10)
    assert host_bytes(groups) == psutil.virtual_memory().total
    assert 0 < free_host_bytes(groups) <= host_bytes(groups)


def test_a_container_s_limit_counts(groups: ControlGroups) -> None:
    groups.membership.write_text("0::/\n")
    write_group(groups.mount, f"{GIB}", GIB // 4)
    assert host_bytes(groups) == GIB
    assert free_host_bytes(groups) == GIB - GIB // 4


def test_a_service_s_limit_counts_and_that_of_every_group_above_it(groups: ControlGroups) -> None:
    groups.membership.write_text("1:name=systemd:/x\n0::/system.slice/loragate.service\n")
    service = groups.mount / "system.slice" / "loragate.service"
    write_group(service, f"{GIB}", GIB // 8)
    write_group(service.parent, "max", GIB)
    assert (host_bytes(groups), free_host_bytes(groups)) == (GIB, GIB - GIB // 8)
    write_group(service.parent, f"{GIB}", GIB - 5)
    assert free_host_bytes(groups) == 5


def test_files_in_the_cache_are_no_memory_that_is_gone(groups: ControlGroups) -> None:
    write_group(groups.mount, f"{GIB}", GIB, cache=GIB // 2)
    assert free_host_bytes(groups) == GIB // 2


def test_more_used_than_allowed_is_nothing_free(groups: ControlGroups) -> None:
    write_group(groups.mount, f"{GIB}", 2 * GIB)
    assert free_host_bytes(groups) == 0


def test_version_1_of_control_groups_counts_too(groups: ControlGroups) -> None:
    groups.membership.write_text("4:memory:/docker/abc\n0::/\n")
    folder = groups.mount / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(f"{GIB}")
    (folder / "memory.usage_in_bytes").write_text(f"{GIB // 2}")
    (folder / "memory.stat").write_text(f"total_inactive_file {GIB // 4}\n")
    assert (host_bytes(groups), free_host_bytes(groups)) == (GIB, GIB - GIB // 4)


def test_a_group_outside_of_the_container_s_view_is_looked_for_at_its_root(
    groups: ControlGroups,
) -> None:
    groups.membership.write_text("0::/../..\n")
    write_group(groups.mount, f"{GIB}", 0)
    assert host_bytes(groups) == GIB
