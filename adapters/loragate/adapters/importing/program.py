"""The program that converts one adapter for `importing`: see `child_process.loop`.

It opens files that others made, pickles among them, with limits of time and memory. A pickle is
read with `weights_only`, so it can make tensors and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from safetensors import SafetensorError

from loragate.adapters.child_process.loop import Job, serve

_UNREADABLE: Final = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    AttributeError,
    TypeError,
    SafetensorError,
)
# Of these llama.cpp turns the rows of q and k round when it converts; of those it does not.
_TURNED: Final = frozenset({"llama"})
_NOT_TURNED: Final = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2"})
_INTERLEAVED: Final = frozenset({"llama", "mistral"})  # torchtune's rotary embedding


def main() -> NoReturn:
    serve(_prepare)


def _prepare(_preparation: object) -> Job:
    import safetensors.torch  # noqa: F401 - what a job needs, before its memory is limited
    import torch

    from loragate.adapters.format import peft_features  # noqa: F401
    from loragate.adapters.importing import conversion  # noqa: F401

    torch.set_num_threads(1)
    return convert


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """Write the adapter that `job` names into its folder. The repairs done, or a code and message
    of why it cannot be.
    """
    from loragate.adapters.errors import InvalidAdapter
    from loragate.adapters.importing.refusal import Refusal

    try:
        return {"repairs": _convert(job)}
    except (Refusal, InvalidAdapter) as refusal:
        return {"code": refusal.code, "message": str(refusal)}
    except _UNREADABLE as error:
        # Of the file: whatever a library says of bytes that are not what they should be.
        return {
            "code": "unreadable",
            "message": f"the weights cannot be read ({type(error).__name__}: "
            f"{str(error)[:300]}); copy them once more, or save the adapter again",
        }


def _convert(job: dict[str, Any]) -> list[dict[str, str]]:
    from safetensors.torch import save_file

    from loragate.adapters.format.files import CONFIG, WEIGHTS
    from loragate.adapters.format.lora_tensors import PREFIX
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import Modules

    shapes: dict[str, tuple[int, int] | None] = {
        name: None if shape is None else (int(shape[0]), int(shape[1]))
        for name, shape in job["shapes"].items()
    }
    modules = Modules(shapes.keys())
    pairs, notes = _READERS[job["layout"]](job, modules, shapes)
    joined = 0
    if shapes:
        pairs, joined = conversion.join_fused(pairs, modules, shapes)
    adapter = conversion.fit(pairs, modules, shapes)
    adapter.repairs[:0] = notes
    if joined:
        adapter.note(
            f"{joined} layers of the base model that hold several got the matrices of all of them",
            "one above the other and along the diagonal, so every product is what it was",
        )
    conversion.to_known_floats(adapter)
    out = Path(job["out"])
    tensors = {}
    for name, pair in adapter.pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b.contiguous()
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    settings = conversion.settings_of(adapter, shapes, job.get("trained_on"))
    (out / CONFIG).write_text(json.dumps(settings, indent=2))
    return [{"what": repair.what, "why": repair.why} for repair in adapter.repairs]


def _tensors(files: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Names and tensors of safetensors and of pickles. Raises Refusal for what else is pickled."""
    import torch
    from safetensors import safe_open

    from loragate.adapters.importing.refusal import Refusal

    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dict
                    yield name, opened.get_tensor(name)
            continue
        try:
            held = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise Refusal(
                "pickle_file",
                f"{Path(file).name} holds more than tensors, or is no whole file, and is not "
                f"opened further ({str(error).splitlines()[0][:150]}); save the adapter as "
                "safetensors (save_pretrained does by default)",
            ) from error
        if not isinstance(held, dict):
            raise Refusal("pickle_file", f"{Path(file).name} holds no tensors by name")
        for name, tensor in held.items():
            if not isinstance(tensor, torch.Tensor):
                raise Refusal(
                    "pickle_file", f"{Path(file).name} holds {name!r}, which is no tensor"
                )
            yield str(name), tensor.detach()


def _of_peft(job: dict[str, Any], modules: Any, shapes: Any) -> tuple[Any, list[Any]]:
    from loragate.adapters.format.peft_config import parse_config
    from loragate.adapters.format.peft_features import check_features
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import parse_name
    from loragate.adapters.importing.refusal import Refusal

    text = Path(job["config"]).read_bytes().removeprefix(b"\xef\xbb\xbf")
    settings = json.loads(text)
    kind = settings.get("peft_type")
    config = None
    if kind not in ("VERA", "ADALORA"):
        config = parse_config(text)
        check_features(config)
    held = list(_tensors(job["weights"]))
    notes = []
    if job["weights"][0].endswith((".bin", ".pt", ".pth")):
        notes.append(conversion.Repair("a pickle written as safetensors", "the same numbers"))
    elif len(job["weights"]) > 1:
        notes.append(conversion.Repair("parts of the weights put together", "the same numbers"))
    if kind == "VERA":
        return _of_vera(held, settings, modules, shapes, notes)
    parts = conversion.parts_of(held, parse_name)
    if kind == "ADALORA":
        count = conversion.from_adalora(parts)
        notes.append(
            conversion.Repair(
                f"AdaLoRA's diagonal multiplied into lora_A, {count} modules",
                "B diag(E) A = B (diag(E) A)",
            )
        )
        rank = int(settings.get("init_r") or settings["r"])
        scale = float(settings["lora_alpha"]) / (rank + 1e-5)
        return conversion.to_pairs(parts, lambda *_: scale), notes
    assert config is not None
    for module, of_module in parts.items():
        if extra := of_module.keys() - {"lora_A", "lora_B"}:
            raise Refusal(
                "unexpected_tensor",
                f"module {module!r} has {', '.join(sorted(extra))}, of which "
                "adapter_config.json does not tell; save both of them together",
            )

    def scale_of(module: str, rank: int, _: Any) -> float:
        plain = module.replace("._orig_mod", "").removeprefix("_orig_mod.")
        if config.rank_of(plain) != rank:
            raise Refusal(
                "wrong_rank",
                f"module {module!r} has rank {rank} where {Path(job['config']).name} says "
                f"{config.rank_of(plain)}, so its scale is not known; save both together",
            )
        return conversion.peft_scale(settings, rank, config.alpha_of(plain))

    pairs = conversion.to_pairs(parts, scale_of)
    if not config.has_expressions:
        _require_declared(config, pairs, modules, shapes)
    return pairs, notes


def _require_declared(config: Any, pairs: Any, modules: Any, shapes: Any) -> None:
    """Refuse a file without the matrices of a layer that its configuration adapts."""
    from loragate.adapters.importing.refusal import Refusal

    found = {modules.find(written) for written in pairs}
    for name in shapes:
        if config.targets(name) and name not in found:
            raise Refusal(
                "missing_tensors",
                f"adapter_config.json adapts {name!r} and the file has no matrices for it; save "
                "the adapter again, or leave the module out of target_modules",
            )


def _of_vera(
    held: Any, settings: dict[str, Any], modules: Any, shapes: Any, notes: list[Any]
) -> tuple[Any, list[Any]]:
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import parse_name
    from loragate.adapters.importing.refusal import Refusal

    shared = {name.rpartition(".")[2]: t for name, t in held if name.endswith(("vera_A", "vera_B"))}
    own = [(name, t) for name, t in held if not name.endswith(("vera_A", "vera_B"))]
    if shared.keys() != {"vera_A", "vera_B"}:
        raise Refusal(
            "vera",
            "VeRA's shared matrices are not in the file; save it with save_projection=True",
        )
    if settings.get("bias", "none") != "none":
        raise Refusal("bias", "trained biases cannot be served; train with bias 'none'")
    parts = conversion.from_vera(conversion.parts_of(own, parse_name), shared, modules, shapes)
    notes.append(
        conversion.Repair(
            f"VeRA written as LoRA of rank {shared['vera_A'].shape[0]}",
            "diag(b) B diag(d) A = (diag(b) B) (diag(d) A)",
        )
    )
    return conversion.to_pairs(parts, lambda *_: 1.0), notes


def _of_mlx(job: dict[str, Any], _modules: Any, _shapes: Any) -> tuple[Any, list[Any]]:
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import parse_name
    from loragate.adapters.importing.refusal import Refusal

    settings = json.loads(Path(job["config"]).read_bytes())
    kind = settings.get("fine_tune_type", "lora")
    if kind != "lora":
        raise Refusal("not_lora", f"MLX trained this with {kind!r}; fuse it into its base model")
    scale = (settings.get("lora_parameters") or {}).get("scale")
    if not isinstance(scale, int | float):
        raise Refusal(
            "invalid_config", "adapter_config.json has no lora_parameters.scale; add what it was"
        )
    parts = conversion.parts_of(_tensors(job["weights"]), parse_name)
    for of_module in parts.values():
        for side in ("lora_A", "lora_B"):
            if side in of_module:
                of_module[side] = of_module[side].T.contiguous()
    notes = [conversion.Repair("MLX's matrices turned round", "MLX multiplies from the other side")]
    return conversion.to_pairs(parts, lambda *_: float(scale)), notes


def _of_kohya(job: dict[str, Any], _modules: Any, _shapes: Any) -> tuple[Any, list[Any]]:
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import parse_name
    from loragate.adapters.importing.refusal import Refusal

    held = list(_tensors(job["weights"]))
    parts = conversion.parts_of(held, parse_name)
    if not any(".lora_down." in name for name, _ in held):
        raise Refusal(
            "missing_file",
            "the file has no adapter_config.json beside it, which says the scale; give the folder "
            "with both",
        )
    for of_module in parts.values():
        if "alpha" not in of_module:
            raise Refusal("invalid_config", "a module has no alpha, so its scale is not known")
    notes = [conversion.Repair("down and up renamed to A and B", "a name is no number")]
    return (
        conversion.to_pairs(parts, lambda _, rank, of: float(of["alpha"].reshape(-1)[0]) / rank),
        notes,
    )


def _of_torchtune(job: dict[str, Any], _modules: Any, _shapes: Any) -> tuple[Any, list[Any]]:
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import parse_name
    from loragate.adapters.importing.refusal import Refusal

    settings = json.loads(Path(job["config"]).read_bytes())
    if job["model_type"] not in _INTERLEAVED:
        raise Refusal(
            "unknown_layout",
            f"how torchtune orders the rows of a {job['model_type'] or 'model not known'} is "
            "not known here; give the folder with adapter_model.safetensors that it writes beside",
        )
    parts = conversion.parts_of(_tensors(job["weights"]), parse_name)
    turned = _turn(parts, job)
    notes = [
        conversion.Repair(f"rows of q and k in {turned} modules put in transformers' order", "")
    ]
    alpha = float(settings["lora_alpha"])
    return conversion.to_pairs(parts, lambda _, rank, __: alpha / rank), notes


def _of_gguf(job: dict[str, Any], _modules: Any, _shapes: Any) -> tuple[Any, list[Any]]:
    import numpy as np
    import torch
    from gguf import GGUFReader, dequantize

    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.names import parse_gguf_name
    from loragate.adapters.importing.refusal import Refusal

    reader = GGUFReader(job["weights"][0])

    def said(key: str) -> Any:
        field = reader.fields.get(key)
        return None if field is None else field.contents()

    if said("general.type") != "adapter" or said("adapter.type") != "lora":
        raise Refusal("not_lora", "the GGUF file is no LoRA adapter; give one that is")
    architecture, alpha = said("general.architecture"), said("adapter.lora.alpha")
    if architecture not in _TURNED | _NOT_TURNED:
        raise Refusal(
            "unknown_layout",
            f"how llama.cpp orders the rows of {architecture!r} is not known here; give the folder "
            "that was converted",
        )
    if not alpha:
        raise Refusal("invalid_config", "the GGUF file has no adapter.lora.alpha")

    def tensors() -> Iterator[tuple[str, Any]]:
        for tensor in reader.tensors:
            numbers = dequantize(tensor.data, tensor.tensor_type)
            yield tensor.name, torch.from_numpy(np.array(numbers, np.float32, copy=True))

    parts = conversion.parts_of(tensors(), parse_gguf_name)
    notes = [conversion.Repair("llama.cpp's names renamed to transformers'", "a name is no number")]
    if architecture in _TURNED:
        turned = _turn(parts, job)
        notes.append(
            conversion.Repair(
                f"rows of q and k in {turned} modules put back in order",
                "llama.cpp turns them for its own rotary embedding",
            )
        )
    return conversion.to_pairs(parts, lambda _, rank, __: float(alpha) / rank), notes


def _turn(parts: Any, job: dict[str, Any]) -> int:
    from loragate.adapters.importing import conversion
    from loragate.adapters.importing.refusal import Refusal

    turned = 0
    for module, of_module in parts.items():
        for last, key in (("q_proj", "heads"), ("k_proj", "key_heads")):
            if not module.endswith(last) or "lora_B" not in of_module:
                continue
            heads = job.get(key)
            if not heads or of_module["lora_B"].shape[0] % (2 * heads):
                raise Refusal(
                    "unknown_layout",
                    "how many heads the base model has is not known or does not fit, so the rows "
                    "of q and k cannot be put in order; import it with the base model prepared",
                )
            of_module["lora_B"] = conversion.unpermute_rows(of_module["lora_B"], heads)
            turned += 1
    return turned


_READERS: Final = {
    "PEFT": _of_peft,
    "MLX": _of_mlx,
    "llama.cpp's GGUF": _of_gguf,
    "kohya's": _of_kohya,
    "torchtune's": _of_torchtune,
}


if __name__ == "__main__":
    main()
