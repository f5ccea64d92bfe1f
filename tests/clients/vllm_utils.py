"""What vLLM's tests find as `tests.utils`: a server that is there already."""

import inspect
import json
import os
import re
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

import huggingface_hub
import openai
import pytest
import requests
import vllm.config
import vllm.model_executor.model_loader.weight_utils
import vllm.tokenizers

# On which machines other options are given.
ROCM_EXTRA_ARGS: list[str] = []
ROCM_ENV_OVERRIDES: dict[str, str] = {}

_TARGET = json.loads(os.environ["LORAGATE_TARGET"])
huggingface_hub.snapshot_download = lambda *arguments, **options: _TARGET["adapter_path"]
huggingface_hub.HfApi.snapshot_download = lambda *arguments, **options: _TARGET["adapter_path"]
requests.sessions.default_headers = lambda: {"authorization": f"Bearer {_TARGET['key']}"}  # pyright: ignore[reportPrivateImportUsage]


vllm.model_executor.model_loader.weight_utils.download_weights_from_hf = (
    lambda model, *arguments, **options: model
)


def pytest_collection_modifyitems(items):
    """Leaves out what asks no server, and what the reasons are known of and that takes minutes."""
    not_run = json.loads(os.environ["LORAGATE_NOT_RUN"])
    for item in items:
        name = f"{item.module.__name__.rpartition('.')[2]}::{item.name}"
        why = next((why for part, why in not_run.items() if re.search(part, name)), None)
        if not _asks_a_server(item):
            why = "it asks no server"
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


def _asks_a_server(item):
    by_fixture = any("server" in each or "client" in each for each in item.fixturenames)
    return by_fixture or "RemoteOpenAIServer" in inspect.getsource(item.function)


def _with_path(get):
    def get_it(*arguments, **options: Any):
        named = {k: _TARGET["model_path"] if v == "base" else v for k, v in options.items()}
        return get(*(_TARGET["model_path"] if a == "base" else a for a in arguments), **named)

    return get_it


vllm.tokenizers.get_tokenizer = _with_path(vllm.tokenizers.get_tokenizer)
vllm.config.ModelConfig.__init__ = _with_path(vllm.config.ModelConfig.__init__)


class RemoteOpenAIServer:
    DUMMY_API_KEY = _TARGET["key"]

    def __init__(self, model, arguments=(), **options: Any):
        self.arguments = arguments

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    @property
    def url_root(self):
        return _TARGET["http"]

    def url_for(self, *parts):
        return urljoin(self.url_root, "/".join(parts))

    def get_client(self, **options: Any):
        options = {"timeout": 60} | options
        return openai.OpenAI(
            base_url=self.url_for("v1"), api_key=_TARGET["key"], max_retries=0, **options
        )

    def get_async_client(self, **options: Any):
        options = {"timeout": 60} | options
        return openai.AsyncOpenAI(
            base_url=self.url_for("v1"), api_key=_TARGET["key"], max_retries=0, **options
        )


@contextmanager
def _nothing(*arguments, **options: Any):
    yield


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _nothing
