"""The processes that train together, as `accelerate launch` starts them; mostly there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


def count() -> int:
    """How many train this run together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes what all of them share."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The others begin when the first process has ended."""
    if count() == 1:
        yield
        return
    with PartialState().main_process_first():
        yield


def any_of(flag: bool) -> bool:
    """Whether it is true in any process; they all have to ask."""
    if count() == 1:
        return flag
    asked = torch.tensor(int(flag), device=PartialState().device)
    torch.distributed.all_reduce(asked)
    return bool(asked)
