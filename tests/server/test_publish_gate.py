"""Every way to publish knows the base model and the engine's largest rank."""

import io
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import save_file

from loragate.adapters.base_models.preparation import BaseModel, prepare
from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import Limits
from loragate.adapters.store import ArtifactStore
from loragate.server.admin_client.local import open_local
from loragate.server.config import ConfigError, EngineConfig
from support.models.one_layer import LAYER, write_adapter
from support.server.small_server import ServeWith, bearer

SUPPORT = AdapterName("acme", "support")


def write_adapter_of_another_base(folder: Path) -> Path:
    write_adapter(folder)
    matrices = {"lora_A": np.ones((2, 8), np.float32), "lora_B": np.ones((8, 2), np.float32)}
    save_file(
        {f"base_model.model.{LAYER}.{side}.weight": matrices[side] for side in matrices},
        folder / "adapter_model.safetensors",
    )
    return folder


def files_of(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (file.name, file.read_bytes())) for file in folder.iterdir()]


async def test_server_refuses_what_its_base_model_cannot_serve(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    async with serve_with(engine=EngineConfig(max_lora_rank=8)) as served:

        async def publish(folder: Path) -> httpx.Response:
            return await served.client.post(
                "/admin/v1/tenants/acme/adapters/support/versions",
                files=files_of(folder),
                headers=bearer(served.admin_key),
            )

        right = await publish(write_adapter(tmp_path / "right", seed=7))
        other = await publish(write_adapter_of_another_base(tmp_path / "other"))
        large = await publish(write_adapter(tmp_path / "large", rank=16))

    assert right.status_code == 201
    assert (other.status_code, other.json()["error"]["code"]) == (400, "wrong_shape")
    assert "needs rank 16, the engine allows 8" in large.json()["error"]["message"]


@pytest.mark.parametrize("name", ["tiny", "base"])
async def test_server_refuses_an_adapter_that_its_base_model_would_answer_for(
    serve_with: ServeWith, tmp_path: Path, name: str
) -> None:
    async with serve_with() as served:
        refused = await served.client.post(
            f"/admin/v1/tenants/acme/adapters/{name}/versions",
            files=files_of(write_adapter(tmp_path / "adapter")),
            headers=bearer(served.admin_key),
        )
        listed = await served.client.get("/v1/models", headers=served.auth)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "base_model_name")
    assert "choose another" in refused.json()["error"]["message"]
    assert f"{name}@v1" not in {card["id"] for card in listed.json()["data"]}


async def test_server_tells_at_its_start_which_adapters_its_base_model_hides(
    serve_with: ServeWith, base: BaseModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_with() as served:
        home = served.home
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.versions.publish(
            AdapterName("acme", base.name), write_adapter(tmp_path / "adapter")
        )

    assert "reach the base model" not in caplog.text
    async with serve_with():
        assert (
            f"requests for '{base.name}' reach the base model, not acme/{base.name}" in caplog.text
        )


@pytest.fixture
def local_home(tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home of a command on this machine, whose base model is the tiny one."""
    model = shutil.copytree(base.path, tmp_path / "tiny")
    for name, value in {"HOME": tmp_path / "home", "ENGINE_MODEL": model}.items():
        monkeypatch.setenv(f"LORAGATE_{name}", str(value))
    monkeypatch.setenv("LORAGATE_ENGINE_MAX_LORA_RANK", "8")
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home").ensure()


def test_command_refuses_by_the_base_model_once_it_is_prepared(
    local_home: Home, tmp_path: Path
) -> None:
    other = write_adapter_of_another_base(tmp_path / "other")
    with open_local() as admin:
        admin.create_tenant("acme", Limits())
        assert admin.publish(SUPPORT, other).version == "v1"
        with pytest.raises(InvalidAdapter, match="needs rank 16, the engine allows 8"):
            admin.publish(SUPPORT, write_adapter(tmp_path / "large", rank=16))

    with Progress(console=Console(file=io.StringIO())) as progress:
        prepare(str(tmp_path / "tiny"), local_home.models, progress)

    with open_local() as admin, pytest.raises(InvalidAdapter, match="another base model"):
        admin.publish(SUPPORT, other)


def test_template_of_the_configuration_is_what_adapters_are_held_to(
    local_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress(console=Console(file=io.StringIO())) as progress:
        prepare(str(tmp_path / "tiny"), local_home.models, progress)
    folder = write_adapter(tmp_path / "adapter")
    trained = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"  # of "content"
    (folder / "manifest.json").write_text(json.dumps({"chat_template_hash": trained}))
    template = tmp_path / "template.jinja"
    with open_local() as admin:
        admin.create_tenant("acme", Limits())
        with pytest.raises(InvalidAdapter, match="another chat template"):
            admin.publish(SUPPORT, folder)

    template.write_text("content")
    monkeypatch.setenv("LORAGATE_ENGINE_CHAT_TEMPLATE", str(template))
    with open_local() as admin:
        assert admin.publish(SUPPORT, folder).version == "v1"

    template.unlink()
    with pytest.raises(ConfigError, match=r"engine\.chat_template"), open_local():
        pass
