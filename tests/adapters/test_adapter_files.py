import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.files import inspect
from loragate.adapters.format.safetensors_header import Tensor, read_header
from support.models.one_layer import WriteAdapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
A = "q_proj.lora_A.weight"


def header(entries: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_sound_folder_gives_its_files_and_what_they_say(write_adapter: WriteAdapter):
    folder = write_adapter(rank=3)
    (folder / "README.md").write_text("# An adapter")
    (folder / "training.log").write_text("stays behind")

    files = inspect(folder)

    assert [file.name for file in files.files] == ["README.md", CONFIG, WEIGHTS]
    assert files.size_bytes == sum(file.path.stat().st_size for file in files.files)
    assert files.manifest.rank == 3
    assert files.manifest.alpha == 4
    assert files.manifest.target_modules == ("q_proj",)
    assert {found.shape for found in files.tensors.values()} == {(3, 4), (4, 3)}


def test_manifest_in_the_folder_is_read(write_adapter: WriteAdapter):
    folder = write_adapter()
    (folder / "manifest.json").write_text('{"contract": {"system_prompt": "Be brief."}}')

    assert inspect(folder).manifest.contract.system_prompt == "Be brief."


def refused_code(folder: Path) -> str:
    with pytest.raises(InvalidAdapter) as refused:
        inspect(folder)
    return refused.value.code


def test_missing_folder_is_refused(tmp_path: Path):
    assert refused_code(tmp_path / "nowhere") == "not_a_folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_refused(write_adapter: WriteAdapter):
    folder = write_adapter()
    (folder / CONFIG).chmod(0)

    assert refused_code(folder) == "unreadable"


@pytest.mark.parametrize(
    ("modules", "expected"), [("all-linear", ("all-linear",)), (None, ()), (["b", "a"], ("a", "b"))]
)
def test_target_modules_are_kept_however_they_are_written(
    write_adapter: WriteAdapter, modules: object, expected: tuple[str, ...]
):
    assert inspect(write_adapter(target_modules=modules)).manifest.target_modules == expected


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file_is_refused(write_adapter: WriteAdapter, name: str):
    folder = write_adapter()
    (folder / name).unlink()

    assert refused_code(folder) == "missing_file"


def test_pipe_in_place_of_a_file_is_refused_and_not_opened(write_adapter: WriteAdapter):
    folder = write_adapter()
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)

    assert refused_code(folder) == "missing_file"


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "a.pth", "B.PKL"])
def test_pickle_beside_an_adapter_is_left_where_it_is(write_adapter: WriteAdapter, name: str):
    folder = write_adapter()
    (folder / name).write_bytes(b"\x80\x04.")
    (folder / "tokenizer.json").symlink_to("/etc/hostname")

    assert {file.name for file in inspect(folder).files} == {CONFIG, WEIGHTS}


def test_files_of_a_hubs_cache_are_taken_through_its_links(
    write_adapter: WriteAdapter, tmp_path: Path
):
    folder = write_adapter()
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(blobs / f"digest-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"digest-{name}")

    assert {file.name for file in inspect(snapshot).files} == {CONFIG, WEIGHTS}
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to(blobs / ".." / "other" / CONFIG)
    assert refused_code(snapshot) == "symlink"


def test_symbolic_link_is_refused(write_adapter: WriteAdapter, tmp_path: Path):
    folder = write_adapter()
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")

    assert refused_code(folder) == "symlink"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"peft_type": "IA3"}, "not_lora"),
        ({"r": 0}, "invalid_rank"),
        ({"rank_pattern": {"q_proj": 0}}, "invalid_config"),
        ({"peft_type": None}, "invalid_config"),
        ({"r": "8"}, "invalid_config"),
        ({"lora_alpha": None}, "invalid_config"),
    ],
)
def test_configuration_that_is_no_lora_is_refused(
    write_adapter: WriteAdapter, config: dict[str, object], code: str
):
    assert refused_code(write_adapter(**config)) == code


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_configuration_that_is_no_json_object_is_refused(write_adapter: WriteAdapter, text: bytes):
    folder = write_adapter()
    (folder / CONFIG).write_bytes(text)

    assert refused_code(folder) == "invalid_config"


def test_huge_configuration_is_refused_unread(write_adapter: WriteAdapter):
    folder = write_adapter()
    (folder / CONFIG).write_bytes(b" " * (2 << 20))

    assert refused_code(folder) == "file_too_large"


def test_huge_weights_are_refused_unread(write_adapter: WriteAdapter):
    folder = write_adapter()
    os.truncate(folder / WEIGHTS, 17 << 30)  # a hole, which takes no room

    assert refused_code(folder) == "file_too_large"


def test_manifest_that_contradicts_the_configuration_is_refused(write_adapter: WriteAdapter):
    folder = write_adapter(rank=2)
    (folder / "manifest.json").write_text('{"rank": 4}')

    assert refused_code(folder) == "invalid_manifest"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"{\xff\xff}",
        header({A: tensor(0, 16, [2, 2])}, b"\0" * 15),
        header({A: tensor(0, 16, [2, 2])}, b"\0" * 17),
        header({A: tensor(0, 16, [2, 3])}, b"\0" * 16),
        header({A: tensor(4, 20, [2, 2])}, b"\0" * 20),
        header({A: tensor(16, 0, [2, 2])}, b"\0" * 16),
        header({A: tensor(-16, 0, [2, 2])}),
        header({A: tensor(0, 16, [2, 2]), "b": tensor(0, 16, [2, 2])}, b"\0" * 16),
        header({A: tensor(0, 4, [2, 2], "I9")}, b"\0" * 4),
        header({A: "nothing"}),
        header({A: {"dtype": "F32"}}),
    ],
    ids=range(15),
)
def test_unsound_weights_are_refused(write_adapter: WriteAdapter, content: bytes):
    folder = write_adapter()
    (folder / WEIGHTS).write_bytes(content)

    assert refused_code(folder) == "invalid_safetensors"


def test_tensor_named_twice_is_refused(write_adapter: WriteAdapter):
    folder = write_adapter()
    entry = json.dumps(tensor(0, 16, [2, 2]))
    text = f'{{"{A}": {entry}, "{A}": {entry}}}'.encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)

    assert refused_code(folder) == "invalid_safetensors"


def test_deeply_nested_header_is_refused(write_adapter: WriteAdapter):
    folder = write_adapter()
    text = b'{"a":' + b"[" * 100_000
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)

    assert refused_code(folder) == "invalid_safetensors"


def test_metadata_is_no_tensor(write_adapter: WriteAdapter):
    folder = write_adapter()
    save_file({A: np.ones((2, 2), np.float32)}, folder / WEIGHTS, metadata={"format": "pt"})

    assert list(inspect(folder).tensors) == [A]


@given(
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_safetensors_writes_is_read(tmp_path: Path, dtype: type, shapes: list[list[int]]):
    written = {f"t{index}": np.zeros(shape, dtype) for index, shape in enumerate(shapes)}
    save_file(written, tmp_path / "file")

    found = read_header(tmp_path / "file")

    assert {name: entry.shape for name, entry in found.items()} == {
        name: array.shape for name, array in written.items()
    }


@given(content=st.binary(max_size=64))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused_or_empty(tmp_path: Path, content: bytes):
    (tmp_path / "file").write_bytes(content)

    assert refused_or_read(tmp_path / "file") in ("invalid_safetensors", {})


def refused_or_read(path: Path) -> str | dict[str, Tensor]:
    try:
        return dict(read_header(path))
    except InvalidAdapter as refused:
        return refused.code
