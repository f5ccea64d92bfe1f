"""`loragate.v1.AdapterRegistry`: administration over gRPC, for whoever holds the admin key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from loragate.adapters.names import AdapterName, parse_version
from loragate.server.admin.administration import Administration
from loragate.server.errors import InvalidRequest
from loragate.server.rpc import encode_registry
from loragate.server.rpc.calls import AdminCalls
from loragate.server.rpc.paging import asked_page, next_after
from loragate.server.rpc.watch import watch
from loragate.v1 import registry_pb2 as pb
from loragate.v1 import registry_pb2_grpc


class RegistryService(registry_pb2_grpc.AdapterRegistryServicer):
    """Adapters, tenants and keys for operators."""

    def __init__(
        self,
        administration: Administration,
        calls: AdminCalls,
        max_adapter_bytes: int,
    ) -> None:
        self._administration = administration
        self._calls = calls
        self._max_adapter_bytes = max_adapter_bytes
        self._stopping = asyncio.Event()

    def end_watches(self) -> None:
        """Sends those who watch away, since nothing else ever would; they may call again."""
        self._stopping.set()

    async def PublishAdapter(
        self,
        request_iterator: AsyncIterator[pb.PublishAdapterRequest],
        context: grpc.aio.ServicerContext[pb.PublishAdapterRequest, pb.PublishAdapterResponse],
    ) -> pb.PublishAdapterResponse:
        async with self._calls.answering(context):
            messages = aiter(request_iterator)
            adapter = await _read_header(messages)
            version = await self._administration.publish_files(
                adapter, _read_chunks(messages), self._max_adapter_bytes
            )
            return pb.PublishAdapterResponse(version=encode_registry.version(version))

    async def GetAdapter(
        self,
        request: pb.GetAdapterRequest,
        context: grpc.aio.ServicerContext[pb.GetAdapterRequest, pb.GetAdapterResponse],
    ) -> pb.GetAdapterResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            return encode_registry.adapter_page(await self._administration.show(adapter))

    async def ListAdapters(
        self,
        request: pb.ListAdaptersRequest,
        context: grpc.aio.ServicerContext[pb.ListAdaptersRequest, pb.ListAdaptersResponse],
    ) -> pb.ListAdaptersResponse:
        async with self._calls.answering(context):
            tenant = request.tenant if request.HasField("tenant") else None
            page = asked_page(request, request.HasField("limit"))
            listings = await self._administration.adapters(tenant, page)
            return pb.ListAdaptersResponse(
                adapters=map(encode_registry.adapter, listings),
                next_after=next_after(listings, page, str),
            )

    async def SetAlias(
        self,
        request: pb.SetAliasRequest,
        context: grpc.aio.ServicerContext[pb.SetAliasRequest, pb.SetAliasResponse],
    ) -> pb.SetAliasResponse:
        async with self._calls.answering(context):
            version = await self._administration.set_alias(
                AdapterName.parse(request.adapter),
                request.alias,
                parse_version(request.version),
                reason=request.reason,
                mode=encode_registry.mode(request.mode),
            )
            return pb.SetAliasResponse(version=encode_registry.version(version))

    async def DeleteAlias(
        self,
        request: pb.DeleteAliasRequest,
        context: grpc.aio.ServicerContext[pb.DeleteAliasRequest, pb.DeleteAliasResponse],
    ) -> pb.DeleteAliasResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            await self._administration.delete_alias(adapter, request.alias)
            return pb.DeleteAliasResponse()

    async def Rollback(
        self,
        request: pb.RollbackRequest,
        context: grpc.aio.ServicerContext[pb.RollbackRequest, pb.RollbackResponse],
    ) -> pb.RollbackResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            version = await self._administration.rollback(adapter)
            return pb.RollbackResponse(version=encode_registry.version(version))

    async def RetireVersion(
        self,
        request: pb.RetireVersionRequest,
        context: grpc.aio.ServicerContext[pb.RetireVersionRequest, pb.RetireVersionResponse],
    ) -> pb.RetireVersionResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            number = parse_version(request.version)
            await self._administration.retire(adapter, number)
            return pb.RetireVersionResponse()

    async def ServeMerged(
        self,
        request: pb.ServeMergedRequest,
        context: grpc.aio.ServicerContext[pb.ServeMergedRequest, pb.ServeMergedResponse],
    ) -> pb.ServeMergedResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            number = parse_version(request.version)
            version = await self._administration.serve_merged(adapter, number)
            return pb.ServeMergedResponse(version=encode_registry.version(version))

    async def StopMerged(
        self,
        request: pb.StopMergedRequest,
        context: grpc.aio.ServicerContext[pb.StopMergedRequest, pb.StopMergedResponse],
    ) -> pb.StopMergedResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            number = parse_version(request.version)
            version = await self._administration.stop_merged(adapter, number)
            return pb.StopMergedResponse(version=encode_registry.version(version))

    async def ListEngines(
        self,
        request: pb.ListEnginesRequest,
        context: grpc.aio.ServicerContext[pb.ListEnginesRequest, pb.ListEnginesResponse],
    ) -> pb.ListEnginesResponse:
        async with self._calls.answering(context):
            statuses = await self._administration.engines()
            return pb.ListEnginesResponse(engines=map(encode_registry.engine, statuses))

    async def PinVersion(
        self,
        request: pb.PinVersionRequest,
        context: grpc.aio.ServicerContext[pb.PinVersionRequest, pb.PinVersionResponse],
    ) -> pb.PinVersionResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            version = await self._administration.pin(adapter, request.selector)
            return pb.PinVersionResponse(version=encode_registry.version(version))

    async def UnpinVersion(
        self,
        request: pb.UnpinVersionRequest,
        context: grpc.aio.ServicerContext[pb.UnpinVersionRequest, pb.UnpinVersionResponse],
    ) -> pb.UnpinVersionResponse:
        async with self._calls.answering(context):
            adapter = AdapterName.parse(request.adapter)
            version = await self._administration.unpin(adapter, request.selector)
            return pb.UnpinVersionResponse(version=encode_registry.version(version))

    async def CollectArtifacts(
        self,
        request: pb.CollectArtifactsRequest,
        context: grpc.aio.ServicerContext[pb.CollectArtifactsRequest, pb.CollectArtifactsResponse],
    ) -> pb.CollectArtifactsResponse:
        async with self._calls.answering(context):
            digests = await self._administration.collect(
                is_dry_run=request.dry_run, unreferenced=request.unreferenced
            )
            return pb.CollectArtifactsResponse(digests=digests)

    async def WatchAdapters(
        self,
        request: pb.WatchAdaptersRequest,
        context: grpc.aio.ServicerContext[pb.WatchAdaptersRequest, pb.WatchAdaptersResponse],
    ) -> None:
        async with self._calls.answering(context):
            tenant = request.tenant if request.HasField("tenant") else None
            async with aclosing(watch(self._administration, tenant, self._stopping)) as messages:
                async for message in messages:
                    await context.write(message)

    async def CreateTenant(
        self,
        request: pb.CreateTenantRequest,
        context: grpc.aio.ServicerContext[pb.CreateTenantRequest, pb.CreateTenantResponse],
    ) -> pb.CreateTenantResponse:
        async with self._calls.answering(context):
            limits = encode_registry.limits(request.limits)
            made = await self._administration.create_tenant(request.tenant, limits)
            return pb.CreateTenantResponse(key=encode_registry.new_key(made))

    async def ListTenants(
        self,
        request: pb.ListTenantsRequest,
        context: grpc.aio.ServicerContext[pb.ListTenantsRequest, pb.ListTenantsResponse],
    ) -> pb.ListTenantsResponse:
        async with self._calls.answering(context):
            page = asked_page(request, request.HasField("limit"))
            tenants = await self._administration.list_tenants(page)
            return pb.ListTenantsResponse(
                tenants=map(encode_registry.tenant, tenants),
                next_after=next_after(tenants, page, lambda record: record.tenant),
            )

    async def SetLimits(
        self,
        request: pb.SetLimitsRequest,
        context: grpc.aio.ServicerContext[pb.SetLimitsRequest, pb.SetLimitsResponse],
    ) -> pb.SetLimitsResponse:
        async with self._calls.answering(context):
            limits = encode_registry.limits(request.limits)
            await self._administration.set_limits(request.tenant, limits)
            return pb.SetLimitsResponse()

    async def DeleteTenant(
        self,
        request: pb.DeleteTenantRequest,
        context: grpc.aio.ServicerContext[pb.DeleteTenantRequest, pb.DeleteTenantResponse],
    ) -> pb.DeleteTenantResponse:
        async with self._calls.answering(context):
            await self._administration.delete_tenant(request.tenant)
            return pb.DeleteTenantResponse()

    async def CreateKey(
        self,
        request: pb.CreateKeyRequest,
        context: grpc.aio.ServicerContext[pb.CreateKeyRequest, pb.CreateKeyResponse],
    ) -> pb.CreateKeyResponse:
        async with self._calls.answering(context):
            made = await self._administration.create_key(request.tenant, request.name)
            return pb.CreateKeyResponse(key=encode_registry.new_key(made))

    async def ListKeys(
        self,
        request: pb.ListKeysRequest,
        context: grpc.aio.ServicerContext[pb.ListKeysRequest, pb.ListKeysResponse],
    ) -> pb.ListKeysResponse:
        async with self._calls.answering(context):
            page = asked_page(request, request.HasField("limit"))
            keys = await self._administration.list_keys(request.tenant, page)
            return pb.ListKeysResponse(
                keys=map(encode_registry.key, keys),
                next_after=next_after(keys, page, lambda record: record.key_id),
            )

    async def RevokeKey(
        self,
        request: pb.RevokeKeyRequest,
        context: grpc.aio.ServicerContext[pb.RevokeKeyRequest, pb.RevokeKeyResponse],
    ) -> pb.RevokeKeyResponse:
        async with self._calls.answering(context):
            await self._administration.revoke_key(request.key_id)
            return pb.RevokeKeyResponse()


async def _read_header(messages: AsyncIterator[pb.PublishAdapterRequest]) -> AdapterName:
    first = await anext(messages, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidRequest(
            "The first message of a publish is its header, with the adapter's name.",
            param="header",
        )
    return AdapterName.parse(first.header.adapter)


async def _read_chunks(
    messages: AsyncIterator[pb.PublishAdapterRequest],
) -> AsyncIterator[tuple[str, bytes]]:
    async for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidRequest(
                "After the header, every message of a publish is a chunk of a file.",
                param="chunk",
            )
        yield message.chunk.file_name, message.chunk.data
