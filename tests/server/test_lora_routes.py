"""vLLM's routes for operators: adapters from folders of the server's machine."""

import asyncio
from pathlib import Path

import pytest

from loragate.adapters.names import AdapterName
from loragate.server.config import ServerConfig
from support.engines.echo_engine import GatedEngine
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, Reply, Served, ServeWith, bearer
from support.waiting import until

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
NEW = "acme/greeter"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Holds an adapter's folder, and a link to one that lies outside."""
    root = tmp_path / "loras"
    root.mkdir()
    write_adapter(root / "good", 7)
    (root / "out").symlink_to(write_adapter(tmp_path / "elsewhere", 8))
    (root / "round").symlink_to(root / "round")
    return root


def serving(root: Path, serve_with: ServeWith):
    server = ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0", lora_path_root=str(root))
    return serve_with(server=server)


async def load(served: Served, path: object, name: str = NEW, **more: object) -> Reply:
    body = {"lora_name": name, "lora_path": str(path), **more}
    return await served.client.post(LOAD, json=body, headers=bearer(served.admin_key))


async def unload(served: Served, name: str = NEW, **more: object) -> Reply:
    body = {"lora_name": name, **more}
    return await served.client.post(UNLOAD, json=body, headers=bearer(served.admin_key))


def refusal_of(reply: Reply, status: int, code: str) -> str:
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    return reply.json()["error"]["message"]


async def test_a_folder_is_loaded_served_and_unloaded(root: Path, serve_with: ServeWith) -> None:
    async with serving(root, serve_with) as served:
        assert (await served.chat(model="greeter")).status_code == 404
        reply = await load(served, root / "good")
        assert reply.status_code == 200, reply.text
        assert reply.text == f"Success: LoRA adapter '{NEW}' added successfully."
        answer = await served.chat(model="greeter", max_tokens=1)
        assert answer.headers["x-loragate-adapter"] == f"{NEW}@v1"
        reply = await unload(served, lora_int_id=1)
        assert reply.text == f"Success: LoRA adapter '{NEW}' removed successfully."
        assert (await served.chat(model="greeter")).status_code == 404
        refusal_of(await unload(served), 404, "alias_not_found")
        assert (await load(served, "good")).status_code == 200  # from the root, and the same v1
        answer = await served.chat(model="greeter", max_tokens=1)
        assert answer.headers["x-loragate-adapter"] == f"{NEW}@v1"


async def test_another_version_takes_over_where_that_is_asked_for(
    root: Path, serve_with: ServeWith
) -> None:
    async with serving(root, serve_with) as served:
        refused = refusal_of(await load(served, "good", str(SUPPORT)), 400, "invalid_value")
        assert "load_inplace" in refused
        reply = await load(served, "good", str(SUPPORT), load_inplace=True)
        assert reply.status_code == 200, reply.text
        answer = await served.chat(max_tokens=1)
        assert answer.headers["x-loragate-adapter"] == "acme/support@v2"


async def test_a_version_that_the_engine_refuses_does_not_take_over(
    root: Path, serve_with: ServeWith
) -> None:
    async with serving(root, serve_with) as served:
        served.engine.refused = {f"{SUPPORT}@v2"}
        reply = await load(served, "good", str(SUPPORT), load_inplace=True)
        assert "it is bad" in refusal_of(reply, 409, "adapter_failed")
        answer = await served.chat(max_tokens=1)
        assert answer.headers["x-loragate-adapter"] == "acme/support@v1"


async def test_only_adapters_of_tenants_are_loaded_and_only_with_the_admin_key(
    root: Path, serve_with: ServeWith
) -> None:
    async with serving(root, serve_with) as served:
        assert "acme/support" in refusal_of(
            await load(served, "good", "greeter"), 400, "invalid_name"
        )
        refusal_of(await load(served, "good", "acme/base"), 400, "base_model_name")
        refusal_of(await load(served, "good", "nobody/x"), 404, "tenant_not_found")
        refusal_of(await load(served, "good", is_3d_lora_weight=True), 400, "invalid_value")
        refusal_of(await load(served, "good", lora_pth="x"), 400, "unknown_parameter")
        refusal_of(await unload(served, "acme/unknown"), 404, "adapter_not_found")
        for path in (LOAD, UNLOAD):
            body = {"lora_name": str(SUPPORT), "lora_path": "good"}
            refusal_of(await served.post(path, body), 403, "permission_denied")
            refusal_of(await served.client.post(path, json=body), 401, "invalid_api_key")
        assert (await served.chat(max_tokens=1)).status_code == 200


async def test_only_folders_below_the_root_are_read(root: Path, serve_with: ServeWith) -> None:
    async with serving(root, serve_with) as served:
        for path in (
            "out",
            "../elsewhere",
            str(root.parent / "elsewhere"),
            "good/../../elsewhere",
            "/etc",
            "a\0b",
            "round",
        ):
            message = refusal_of(await load(served, path), 400, "invalid_value")
            assert "lora_path" in message
        refusal_of(await load(served, "nothing"), 400, "not_a_folder")
        refusal_of(await load(served, "good/adapter_config.json"), 400, "not_a_folder")
        (root / "good" / "README.md").symlink_to("/etc/hostname")
        refusal_of(await load(served, "good"), 400, "symlink")
        assert _adapters(served) == [str(SUPPORT)]


async def test_no_folder_is_read_unless_the_server_is_set_to(root: Path, served: Served) -> None:
    message = refusal_of(await load(served, root / "good"), 400, "invalid_value")
    assert "server.lora_path_root" in message


class TestWithAnEngineThatTakesItsTime:
    @pytest.fixture
    def engine(self) -> GatedEngine:
        return GatedEngine(gate=asyncio.Event())

    async def test_loading_is_answered_once_the_version_serves(
        self, root: Path, engine: GatedEngine, serve_with: ServeWith
    ) -> None:
        gate = engine.gate
        assert gate is not None
        async with serving(root, serve_with) as served:
            asking = asyncio.create_task(load(served, "good"))
            await until(lambda: "LOADING" in _states_of(served, AdapterName.parse(NEW)), 5)
            assert not asking.done()
            gate.set()
            assert (await asking).status_code == 200


def _states_of(served: Served, adapter: AdapterName) -> list[str]:
    if str(adapter) not in _adapters(served):
        return []
    return [each.state for each in served.registry.versions.show(adapter).versions]


def _adapters(served: Served) -> list[str]:
    return [str(each) for each in served.registry.adapters("acme")]
