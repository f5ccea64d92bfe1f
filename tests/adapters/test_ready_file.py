"""A ready file holds what PyTorch would make of the artifact, and a damaged one is not read."""

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from loragate.adapters.format import ready_file
from loragate.adapters.format.files import inspect
from loragate.adapters.format.ready_file import (
    ReadyAdapter,
    ReadyFileDamaged,
    ReadyForm,
    read_ready,
    require_sound,
    write_ready,
)
from loragate.adapters.format.tensor_cast import BITS, cast
from support.models.one_layer import WriteAdapter

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SERVED = ReadyForm("BF16", transposes_b=True)
forms = st.builds(ReadyForm, st.sampled_from(sorted(DTYPES)), st.booleans())


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def artifact(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = path.read_bytes()
    ready = read_ready(path)
    left = content[ready.data_start :]
    found: dict[str, torch.Tensor] = {}
    for tensor in ready.tensors:
        dtype = DTYPES[ready.form.dtype]
        count = int(np.prod(tensor.shape))
        read = torch.frombuffer(bytearray(left[: count * dtype.itemsize]), dtype=dtype)
        left = left[count * dtype.itemsize :]
        transposed = ready.is_transposed(tensor)
        shape = tensor.shape[::-1] if transposed else tensor.shape
        found[tensor.name] = read.view(shape).T if transposed else read.view(shape)
    assert not left
    return found


@given(
    form=forms,
    shapes=st.lists(
        st.tuples(st.integers(1, 140), st.sampled_from([1, 7, 64, 2048])), min_size=1, max_size=6
    ),
    given_dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_every_tensor_is_as_torch_rounds_it(
    tmp_path_factory: pytest.TempPathFactory,
    form: ReadyForm,
    shapes: list[tuple[int, int]],
    given_dtypes: list[str],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("ready")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.{number % 3}.m{number}.lora_{'AB'[number % 2]}.weight": torch.randn(
            shape, generator=generator
        ).to(DTYPES[given_dtypes[number % len(given_dtypes)]])
        for number, shape in enumerate(shapes)
    }

    write_ready(artifact(folder / "given", tensors), folder / "made", form)

    made = weights(folder / "made")
    assert made.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(made[name], tensor.to(DTYPES[form.dtype]))


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
    wanted=st.sampled_from(sorted(DTYPES)),
    source=st.sampled_from(sorted(DTYPES)),
)
@settings(max_examples=200, deadline=None)
def test_any_bits_are_cast_as_torch_casts_them(bits: list[int], wanted: str, source: str) -> None:
    given_bits = np.array(bits, np.uint32).view(BITS[source])
    numbers = torch.from_numpy(given_bits.copy().view(np.int16 if source != "F32" else np.int32))
    numbers = numbers.view(DTYPES[source])
    expected = numbers.to(DTYPES[wanted])

    made = cast(given_bits, source, wanted)

    signed = made.copy().view(np.int16 if wanted != "F32" else np.int32)
    found = torch.from_numpy(signed).view(DTYPES[wanted])
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def test_layers_lie_one_after_the_other(tmp_path: Path) -> None:
    names = [f"layers.{layer}.{part}.lora_A.weight" for part in "qkv" for layer in (10, 2, 1)]
    artifact(tmp_path, {name: torch.ones(2, 2) for name in names})
    write_ready(tmp_path, tmp_path / "made", SERVED)
    layers = [ready_file.layer_of(t.name) for t in read_ready(tmp_path / "made").tensors]
    assert len([i for i, each in enumerate(layers) if layers[:i][-1:] != [each]]) == 3


def test_ready_file_says_of_the_artifact_what_its_folder_says(
    tmp_path: Path, write_adapter: WriteAdapter
) -> None:
    folder = write_adapter()
    there = inspect(folder)

    write_ready(folder, tmp_path / "made", SERVED)

    files = read_ready(tmp_path / "made").files(folder)
    assert (files.config, files.manifest) == (there.config, there.manifest)
    assert {n: (t.dtype, t.shape) for n, t in files.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in there.tensors.items()
    }


def test_any_damage_is_found(tmp_path: Path, write_adapter: WriteAdapter) -> None:
    made, damaged = tmp_path / "made", tmp_path / "damaged"
    write_ready(write_adapter(), made, SERVED)
    content = made.read_bytes()
    chance = random.Random(1)
    for _ in range(60):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        for wrong in (bytes(changed), content[: chance.randrange(len(content))], content + b"\0"):
            damaged.write_bytes(wrong)
            with pytest.raises(ReadyFileDamaged):
                read_ready(damaged)
            with pytest.raises(ReadyFileDamaged):
                require_sound(memoryview(wrong))
    require_sound(memoryview(content))


def test_file_of_many_pieces_is_read_whole(
    tmp_path: Path, write_adapter: WriteAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ready(write_adapter(), tmp_path / "made", SERVED)
    expected = read_ready(tmp_path / "made")
    monkeypatch.setattr(ready_file, "_CHUNK_BYTES", 16)

    assert read_ready(tmp_path / "made") == expected
    require_sound(memoryview((tmp_path / "made").read_bytes()))


@pytest.mark.parametrize("head", [b"", b"\xc1", b"\x90"])
def test_head_that_is_none_is_damage(head: bytes) -> None:
    content = bytes(8) + len(head).to_bytes(8, "little") + head
    with pytest.raises(ReadyFileDamaged, match="head"):
        ReadyAdapter.read_head(memoryview(content))


@given(form=forms)
def test_form_is_read_as_it_was_written(form: ReadyForm) -> None:
    assert ReadyForm.parse(str(form)) == form


@pytest.mark.parametrize("text", ["", "F64", "BF16-", "BF16-turned", "bf16"])
def test_what_is_no_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no form"):
        ReadyForm.parse(text)


def test_full_disk_is_told(tmp_path: Path) -> None:
    artifact(tmp_path, {"a": torch.ones(1 << 12)})
    with files_of_at_most(5000), pytest.raises(OSError, match="File too large"):
        write_ready(tmp_path, tmp_path / "made", SERVED)


def test_file_that_shrinks_meanwhile_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact(tmp_path, {"a": torch.ones(1 << 12)})
    given_file, read_data_start = tmp_path / "adapter_model.safetensors", ready_file.read_data_start

    def shrinking(file: Any) -> int:  # its header has been read by now
        start = read_data_start(file)
        with given_file.open("r+b") as other:
            other.truncate(1000)
        return start

    monkeypatch.setattr(ready_file, "read_data_start", shrinking)
    with pytest.raises(OSError, match="shorter"):
        write_ready(tmp_path, tmp_path / "made", SERVED)
