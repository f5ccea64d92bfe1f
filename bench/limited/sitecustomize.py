"""Makes torch, and so vLLM, believe that the processor has no more than AVX2, or no bfloat16.

Python imports this at the start of each process whose PYTHONPATH has its folder first; see
`bench.processor`. vLLM chooses its compiled operators by what torch says.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

_LIMIT = os.environ.get("BENCH_ISA", "")
_HIDDEN = {
    "avx2": ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_vnni_supported"),
    "avx512": ("_is_avx512_bf16_supported",),
}


class _Limiting(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `torch.cpu` as everybody does, and takes from it what the processor is not to have."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.cpu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self._loader is not None
        self._loader.exec_module(module)
        for name in _HIDDEN[_LIMIT]:
            if hasattr(module, name):
                setattr(module, name, lambda: False)


if _LIMIT in _HIDDEN:
    sys.meta_path.insert(0, _Limiting())
