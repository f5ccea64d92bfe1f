import re
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.format.files import WEIGHTS, inspect
from loragate.adapters.format.ready_file import LAYOUT, ReadyForm, read_ready
from loragate.adapters.store import ArtifactStore
from support.concurrent_processes import run_together
from support.models.one_layer import WriteAdapter

SERVED = ReadyForm("BF16", transposes_b=True)

# Puts a folder whose weights are a pipe by the time they are copied: the copy waits half-way.
STUCK_PUT = """
import os, sys
from pathlib import Path
from loragate.adapters.format.files import WEIGHTS, inspect
from loragate.adapters.format.ready_file import LAYOUT, ReadyForm, read_ready
from loragate.adapters.store import ArtifactStore
folder, root = map(Path, sys.argv[1:])
files = inspect(folder)
weights = folder / "adapter_model.safetensors"
weights.unlink()
os.mkfifo(weights)
ArtifactStore(root).put(files)
"""

PUT_WITH_FILE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from loragate.adapters.format.files import inspect
from loragate.adapters.errors import StoreError
from loragate.adapters.store import ArtifactStore
folder, root = map(Path, sys.argv[1:])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    ArtifactStore(root).put(inspect(folder))
except StoreError as error:
    print(error)
"""


GET_READY = """
import sys
from pathlib import Path
from loragate.adapters.format.ready_file import ReadyForm
from loragate.adapters.store import ArtifactStore
root, digest = sys.argv[1:]
store = ArtifactStore(Path(root))
print("ready", flush=True)
input()
for _ in range(20):
    path, adapter = store.ready(digest, ReadyForm("BF16", transposes_b=True))
    assert store.renews(digest, ReadyForm("BF16", transposes_b=True)) is False
print(len(adapter.tensors))
"""

SCRATCHING = """
import os, signal, sys
from pathlib import Path
from loragate.adapters.store import ArtifactStore
with ArtifactStore(Path(sys.argv[1])).scratch() as folder:
    (folder / "half").write_text("a merge")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_artifact_lies_under_its_digest_with_the_same_bytes(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    folder = write_adapter()

    digest = store.put(inspect(folder))

    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert store.path(digest).name == digest
    for file in folder.iterdir():
        assert (store.path(digest) / file.name).read_bytes() == file.read_bytes()
    store.verify(digest)


def test_stored_files_are_read_only(store: ArtifactStore, write_adapter: WriteAdapter):
    folder = store.path(store.put(inspect(write_adapter())))

    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o444}


def test_same_content_has_the_same_digest_wherever_it_came_from(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    one = store.put(inspect(write_adapter("one")))
    two = store.put(inspect(write_adapter("two")))
    other = store.put(inspect(write_adapter("other", seed=1)))

    assert one == two != other


def test_many_threads_may_put_the_same_content(
    store: ArtifactStore, write_adapter: WriteAdapter, tmp_path: Path
):
    files = inspect(write_adapter())

    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(store.put, [files] * 24))

    assert len(digests) == 1
    assert [entry.name for entry in (tmp_path / "artifacts").iterdir()] == list(digests)


def test_changed_byte_is_found(store: ArtifactStore, write_adapter: WriteAdapter):
    digest = store.put(inspect(write_adapter()))
    weights = store.path(digest) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)

    with pytest.raises(StoreError, match="damaged"):
        store.verify(digest)


def test_damaged_copy_is_not_taken_for_the_published_one(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    files = inspect(write_adapter())
    digest = store.put(files)
    (store.path(digest) / "adapter_config.json").unlink()

    with pytest.raises(StoreError, match="damaged"):
        store.put(files)


def test_unknown_artifact_is_missing(store: ArtifactStore):
    with pytest.raises(StoreError, match="missing"):
        store.path("0" * 64)


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "A" * 64])
def test_path_takes_nothing_but_a_digest(store: ArtifactStore, digest: str):
    with pytest.raises(StoreError, match="not an artifact's digest"):
        store.path(digest)


def test_link_swapped_in_after_the_check_is_not_followed(
    store: ArtifactStore, write_adapter: WriteAdapter, tmp_path: Path
):
    folder = write_adapter()
    files = inspect(folder)
    (folder / "adapter_config.json").rename(tmp_path / "secret")
    (folder / "adapter_config.json").symlink_to(tmp_path / "secret")

    with pytest.raises(StoreError):
        store.put(files)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_process_killed_half_way_leaves_nothing_visible(
    store: ArtifactStore, write_adapter: WriteAdapter, tmp_path: Path
):
    root = tmp_path / "artifacts"
    folder = write_adapter()
    victim = subprocess.Popen([sys.executable, "-c", STUCK_PUT, folder, root])
    # Opening the pipe's other end returns when the copy has got there.
    weights = folder / "adapter_model.safetensors"
    while not weights.is_fifo():
        assert victim.poll() is None
    with weights.open("wb") as pipe:
        pipe.write(b"half")
        pipe.flush()
        assert store.sweep() == 0
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)

    left = [entry.name for entry in root.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(f".incoming-{victim.pid}-")
    assert store.sweep() == 1
    assert list(root.iterdir()) == []


def test_file_that_cannot_be_written_whole_is_a_store_error_and_leaves_nothing(
    write_adapter: WriteAdapter, tmp_path: Path
):
    root = tmp_path / "artifacts"

    put = subprocess.run(
        [sys.executable, "-c", PUT_WITH_FILE_LIMIT, write_adapter(rank=64), root],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "no room for the artifact" in put.stdout
    assert list(root.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 64 KiB, where this user may mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_full_disk_is_a_store_error_and_leaves_nothing(
    write_adapter: WriteAdapter, small_disk: Path
):
    store = ArtifactStore(small_disk / "artifacts")

    with pytest.raises(StoreError, match="free space"):
        store.put(inspect(write_adapter("large", rank=4096)))

    assert list((small_disk / "artifacts").iterdir()) == []
    store.verify(store.put(inspect(write_adapter("small"))))


def test_scratch_folder_is_gone_at_its_end_and_what_a_killed_process_left_is_swept(
    store: ArtifactStore, tmp_path: Path
):
    with store.scratch() as folder:
        (folder / "file").write_text("kept while it is open")
        assert store.sweep() == 0
    assert not folder.exists()
    killed = subprocess.run([sys.executable, "-c", SCRATCHING, str(folder.parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(folder.parent.iterdir())) == 1

    with store.scratch():
        assert len(list(folder.parent.iterdir())) == 1
    assert list(folder.parent.iterdir()) == []


def test_store_that_cannot_be_looked_at_is_a_store_error(tmp_path: Path):
    store = ArtifactStore(tmp_path / ("x" * 300))  # no file system has names of that length

    for ask in (store.path, store.has, store.verify):
        with pytest.raises(StoreError, match="cannot be read"):
            ask("a" * 64)
    with pytest.raises(StoreError), store.scratch():
        pass


def put(store: ArtifactStore, write_adapter: WriteAdapter) -> str:
    return store.put(inspect(write_adapter()))


def test_artifact_is_made_ready_for_the_form_that_is_wanted(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    digest = put(store, write_adapter)
    folder = store.path(digest).with_name(f"{digest}.ready")
    store.get_ready(digest)
    assert not folder.exists()

    store.want_ready(SERVED)
    store.get_ready(digest)

    assert [path.name for path in folder.iterdir()] == [SERVED.file_name]
    store.verify(digest)  # it lies beside the artifact and is no part of it
    assert store.digests() == [digest]


def test_ready_file_is_read_without_the_artifact(store: ArtifactStore, write_adapter: WriteAdapter):
    digest = put(store, write_adapter)
    store.want_ready(SERVED)
    store.get_ready(digest)
    for file in store.path(digest).iterdir():
        file.unlink()

    found = store.ready(digest, SERVED)

    assert found is not None
    assert found[1] == read_ready(found[0])


def test_absent_ready_file_is_made_of_a_sound_artifact_alone(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    digest = put(store, write_adapter)
    assert store.ready(digest, SERVED) is not None
    shutil.rmtree(store.path(digest).with_name(f"{digest}.ready"))
    damage(store.path(digest) / WEIGHTS)

    with pytest.raises(StoreError, match="is damaged"):
        store.ready(digest, SERVED)


def test_each_form_has_a_file_of_its_own(store: ArtifactStore, write_adapter: WriteAdapter):
    digest = put(store, write_adapter)
    forms = [SERVED, ReadyForm("BF16", transposes_b=False), ReadyForm("F16", transposes_b=True)]

    found = [store.ready(digest, form) for form in forms]

    assert [each and each[1].form for each in found] == forms
    assert len({each and each[0].read_bytes() for each in found}) == 3


def test_damaged_ready_file_is_told_and_made_again(
    store: ArtifactStore, write_adapter: WriteAdapter, caplog: pytest.LogCaptureFixture
):
    digest = put(store, write_adapter)
    found = store.ready(digest, SERVED)
    assert found is not None
    sound = found[0].read_bytes()
    damage(found[0])

    assert store.ready(digest, SERVED) == found

    assert found[0].read_bytes() == sound
    assert "is damaged and is made again" in caplog.text


def test_damaged_ready_file_of_a_damaged_artifact_is_not_made_again(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    digest = put(store, write_adapter)
    found = store.ready(digest, SERVED)
    assert found is not None
    damage(found[0])
    damage(store.path(digest) / WEIGHTS)

    with pytest.raises(StoreError, match=f"the artifact {digest} is damaged"):
        store.ready(digest, SERVED)


def test_processes_that_make_it_at_once_end_with_one_whole_file(
    store: ArtifactStore, write_adapter: WriteAdapter, tmp_path: Path
):
    digest = put(store, write_adapter)

    said = run_together(GET_READY, *[[str(tmp_path / "artifacts"), digest]] * 2)

    assert said == ["2\n", "2\n"]
    folder = store.path(digest).with_name(f"{digest}.ready")
    assert [path.name for path in folder.iterdir()] == [SERVED.file_name]
    assert not store.sweep()


@pytest.mark.parametrize("is_orphan", [False, True])
def test_ready_files_go_with_their_artifact(
    store: ArtifactStore, write_adapter: WriteAdapter, tmp_path: Path, is_orphan: bool
):
    digest = put(store, write_adapter)
    store.want_ready(SERVED)
    store.get_ready(digest)

    if is_orphan:
        assert store.remove_orphan(digest, -1)
    else:
        store.remove(digest)

    assert store.sweep() == 2
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["ready-form"]


def test_file_of_an_older_layout_goes_when_it_is_made_in_this_one(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    digest = put(store, write_adapter)
    folder = store.path(digest).with_name(f"{digest}.ready")
    folder.mkdir()
    (folder / f"{SERVED}.{LAYOUT - 1}").write_bytes(b"as it was")

    store.ready(digest, SERVED)

    assert [path.name for path in folder.iterdir()] == [SERVED.file_name]


def test_ready_file_that_cannot_be_kept_is_told_and_not_needed(
    store: ArtifactStore, write_adapter: WriteAdapter, caplog: pytest.LogCaptureFixture
):
    digest = put(store, write_adapter)
    store.want_ready(SERVED)
    store.path(digest).with_name(f"{digest}.ready").write_text("in the way")

    store.get_ready(digest)
    assert store.ready(digest, SERVED) is None

    assert "cannot be kept" in caplog.text
    assert not store.sweep()


def test_ready_file_that_is_not_its_artifact_s_is_told_and_replaced(
    store: ArtifactStore, write_adapter: WriteAdapter
):
    digest, other = put(store, write_adapter), store.put(inspect(write_adapter("other", seed=1)))
    found, wrong = store.ready(digest, SERVED), store.ready(other, SERVED)
    assert found is not None
    assert wrong is not None
    found[0].chmod(0o600)
    sound = found[0].read_bytes()
    found[0].write_bytes(wrong[0].read_bytes())

    assert store.renews(digest, SERVED)

    assert found[0].read_bytes() == sound
    assert not store.renews(digest, SERVED)


def test_wanted_form_that_is_none_is_as_if_nobody_wanted_one(
    store: ArtifactStore, write_adapter: WriteAdapter, tmp_path: Path
):
    digest = put(store, write_adapter)
    (tmp_path / "artifacts" / "ready-form").write_text("a later one")
    store.get_ready(digest)
    assert not store.path(digest).with_name(f"{digest}.ready").exists()
    store.want_ready(SERVED)
    store.get_ready(digest)
    assert store.path(digest).with_name(f"{digest}.ready").exists()


def damage(path: Path) -> None:
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
