"""Memory that weights lie in."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loragate.server.engine.cpu.huge_pages import HugePages

SHAPES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=12)


@given(shapes=SHAPES, dtype=st.sampled_from((torch.bfloat16, torch.uint8, torch.float32)))
def test_tensors_do_not_overlap(shapes: list[tuple[int, int]], dtype: torch.dtype) -> None:
    memory = HugePages()
    tensors = [memory.empty(shape, dtype).fill_(index) for index, shape in enumerate(shapes)]
    for index, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == index).all()


def test_what_is_larger_than_a_chunk_has_its_own() -> None:
    memory = HugePages()
    small, large = memory.empty((8,), torch.uint8), memory.empty((80 * 2**20,), torch.uint8)
    assert large.fill_(1).sum() == 80 * 2**20
    assert small.fill_(2).sum() == 16


def test_a_copy_is_contiguous_and_its_own() -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    copy = HugePages().copy(tensor)
    tensor[0, 0] = 9
    assert copy.is_contiguous()
    assert copy.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_weights_lie_in_huge_pages_where_the_system_has_them() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("the system has no transparent huge pages")
    tensor = HugePages().empty((8 * 2**20,), torch.uint8).fill_(1)
    assert _huge_kib(tensor.data_ptr()) >= 4 * 1024


def _huge_kib(address: int) -> int:
    """Of the mapping that the address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            begin, _, end = first.partition("-")
            inside = int(begin, 16) <= address < int(end, 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    return 0
