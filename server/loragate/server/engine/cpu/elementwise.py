"""Norm, activation and rotary embedding on CPU as one call each (native/elementwise.c).

vLLM leaves norm and activation to PyTorch on CPU, for a compiler to fuse; with LoRA it does not
compile, and each norm becomes eight small operators. Its own compiled operators wake a thread for
every row. The classes here take the place of vLLM's by the name that they register; what they do
not cover goes the old way.
"""

import ctypes
from collections.abc import Callable

import torch
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

_LANES = 16  # as in vectors.h
_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
_POINTER, _NUMBER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def register(library: ctypes.CDLL) -> None:
    """From now on vLLM makes these where it would make its own. Once per process."""

    def functions(name: str, *types: type) -> dict[torch.dtype, Callable[..., None]]:
        return {
            dtype: _function(library, f"{name}_{suffix}", types) for dtype, suffix in _NAMES.items()
        }

    rms_norm = functions(
        "rms_norm", _POINTER, _POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER, _FLOAT
    )
    add_rms_norm = functions("add_rms_norm", _POINTER, _POINTER, _POINTER, _NUMBER, _NUMBER, _FLOAT)
    silu_and_mul = functions("silu_and_mul", _POINTER, _POINTER, _NUMBER, _NUMBER)
    rotate = functions(
        "rotate", _POINTER, _POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _NUMBER
    )

    class CompiledRMSNorm(RMSNorm):
        """Zhang and Sennrich, arXiv 1910.07467. With a residual, adds that first; both in place."""

        def forward_cpu(
            self, x: torch.Tensor, residual: torch.Tensor | None = None
        ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            weight = self.weight.data
            is_plain = self.pass_weight and self.variance_size_override is None
            if not (is_plain and _is_covered(x) and weight.dtype is x.dtype):
                return self.forward_native(x, residual)
            rows, width = x.shape
            if residual is None:
                out = x.new_empty((rows, width))
                rms_norm[x.dtype](
                    out.data_ptr(), x.data_ptr(), weight.data_ptr(),
                    rows, width, x.stride(0), self.variance_epsilon,
                )  # fmt: skip
                return out
            if not (x.is_contiguous() and residual.is_contiguous() and residual.dtype is x.dtype):
                return self.forward_native(x, residual)
            add_rms_norm[x.dtype](
                x.data_ptr(), residual.data_ptr(), weight.data_ptr(),
                rows, width, self.variance_epsilon,
            )  # fmt: skip
            return x, residual

    class CompiledSiluAndMul(SiluAndMul):
        """SwiGLU's activation (Shazeer, arXiv 2002.05202): silu of the first half by the second."""

        def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
            if not (_is_covered(x) and x.is_contiguous() and x.shape[1] % (2 * _LANES) == 0):
                return self.forward_native(x)
            rows, width = x.shape[0], x.shape[1] // 2
            out = x.new_empty((rows, width))
            silu_and_mul[x.dtype](out.data_ptr(), x.data_ptr(), rows, width)
            return out

    class CompiledRotaryEmbedding(RotaryEmbedding):
        """Su et al., arXiv 2104.09864, in GPT-NeoX's order of elements, in place."""

        def forward_cpu(
            self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            half = self.rotary_dim // 2
            tensors = [query] if key is None else [query, key]
            is_plain = self.is_neox_style and half % _LANES == 0 and positions.dim() == 1
            if not is_plain or not all(map(_is_covered, tensors)):
                return super().forward_cpu(positions, query, key)
            table = self._match_cos_sin_cache_dtype(query)
            for each in tensors:
                rotate[each.dtype](
                    each.data_ptr(), positions.data_ptr(), table.data_ptr(), each.shape[0],
                    each.stride(0), each.shape[1] // self.head_size, self.head_size, half,
                )  # fmt: skip
            return query, key

    RMSNorm.register_oot(CompiledRMSNorm, name="RMSNorm")
    SiluAndMul.register_oot(CompiledSiluAndMul, name="SiluAndMul")
    RotaryEmbedding.register_oot(CompiledRotaryEmbedding, name="RotaryEmbedding")


def _function(library: ctypes.CDLL, name: str, types: tuple[type, ...]) -> Callable[..., None]:
    function = library[name]
    function.argtypes, function.restype = types, None
    return function


def _is_covered(x: torch.Tensor) -> bool:
    """Rows of whole vectors, of a type that there is code for."""
    return x.dtype in _NAMES and x.dim() == 2 and x.shape[1] % _LANES == 0 and x.stride(1) == 1
