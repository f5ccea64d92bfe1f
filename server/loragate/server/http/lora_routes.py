"""vLLM's two routes for operators, `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, for
whoever holds the admin key.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import Field

from loragate.adapters.names import AdapterName
from loragate.server.admin.lora_folders import LoraFolders
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.errors import InvalidRequest
from loragate.server.http.admin_routes import ADMIN_KEY_HEADER
from loragate.server.http.guarded_routes import Guard, guarded_by
from loragate.server.http.requests import Body

_Name = Annotated[
    str, Field(min_length=1, max_length=256, description="TENANT/ADAPTER, as in acme/support.")
]


class LoadBody(Body):
    lora_name: _Name
    lora_path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="A folder below server.lora_path_root, from there or from the root.",
        ),
    ]
    load_inplace: bool = False
    is_3d_lora_weight: bool = Field(default=False, description="Refused when true.")


class UnloadBody(Body):
    lora_name: _Name
    lora_int_id: int | None = Field(default=None, description="Ignored: the name says which.")


def build_lora_router(folders: LoraFolders, guard: Guard, threads: FairThreads) -> APIRouter:
    """`guard` lets in whoever may administer."""
    router = APIRouter(
        prefix="/v1",
        tags=["adapters"],
        dependencies=[Depends(ADMIN_KEY_HEADER)],
        route_class=guarded_by(guard, threads),
    )

    @router.post("/load_lora_adapter")
    async def load_lora_adapter(body: LoadBody) -> PlainTextResponse:
        """Publish a folder of this machine as an adapter's next version, and promote it.

        Answers once it serves, or says why it cannot. An adapter that is served already is left
        alone unless `load_inplace` is true.
        """
        if body.is_3d_lora_weight:
            raise InvalidRequest(
                "Weights of three dimensions are not served; leave is_3d_lora_weight out.",
                param="is_3d_lora_weight",
            )
        adapter = AdapterName.parse(body.lora_name)
        await folders.load(adapter, body.lora_path, in_place=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{adapter}' added successfully.")

    @router.post("/unload_lora_adapter")
    async def unload_lora_adapter(body: UnloadBody) -> PlainTextResponse:
        """Serve an adapter no longer by its name; its versions stay, and can be promoted again."""
        adapter = AdapterName.parse(body.lora_name)
        await folders.unload(adapter)
        return PlainTextResponse(f"Success: LoRA adapter '{adapter}' removed successfully.")

    return router
