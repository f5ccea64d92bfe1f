"""Where the server is that `run.py` has started. Nothing of loragate is imported here: these tests
run in an environment that holds one client alone.
"""

import json
import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Target:
    http: str
    grpc: str
    key: str
    model: str  # an adapter of the key's tenant
    tokenizer: str  # a folder

    @property
    def base_url(self) -> str:
        return f"{self.http}/v1"


@pytest.fixture(scope="session")
def target() -> Target:
    return Target(**json.loads(os.environ["LORAGATE_TARGET"]))
