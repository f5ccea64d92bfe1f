"""HTTP and gRPC over the same services and the same administration."""

from collections.abc import Callable, Sequence
from functools import partial

from loragate.server.admin.administration import Administration
from loragate.server.admin.lora_folders import LoraFolders
from loragate.server.app.data_plane import DataPlane
from loragate.server.app.foundation import Foundation
from loragate.server.app.live_registry import LiveRegistry
from loragate.server.app.server import Server
from loragate.server.config import are_metrics_closed, cors_origins
from loragate.server.http import admin_routes
from loragate.server.http.lora_routes import build_lora_router
from loragate.server.http.server import HttpOptions, build_http
from loragate.server.merged.engine_status import EngineStatus
from loragate.server.rpc.server import GrpcOptions, build_server
from loragate.server.telemetry.health import Health


def build_transports(
    foundation: Foundation,
    live: LiveRegistry,
    data_plane: DataPlane,
    *,
    health: Health,
    engines: Callable[[], Sequence[EngineStatus]],
) -> Server:
    """Nothing listens yet. Call it in the event loop that will serve."""
    config, threads = foundation.config, foundation.threads
    authenticator = data_plane.authenticator
    administration = partial(
        Administration,
        foundation.registry,
        snapshots=live.snapshots,
        engines=engines,
        pool=foundation.pools.administration,
        files_pool=foundation.pools.files,
        orphans_after_seconds=config.registry.orphans_after_seconds,
    )
    grpc = build_server(
        data_plane.services,
        administration("grpc"),
        admin_key=foundation.admin_key,
        is_tenant_key=authenticator.is_tenant_key,
        options=GrpcOptions(
            max_message_bytes=config.server.max_body_bytes,
            max_adapter_bytes=config.server.max_adapter_bytes,
            message_seconds=config.server.body_timeout_seconds,
            write_seconds=config.server.write_timeout_seconds,
        ),
        threads=threads,
    )
    http_administration = administration("http")
    admin = admin_routes.build_router(
        http_administration,
        foundation.admin_key,
        threads,
        is_tenant_key=authenticator.is_tenant_key,
        max_adapter_bytes=config.server.max_adapter_bytes,
    )
    lora = build_lora_router(
        LoraFolders(
            http_administration, config.server.lora_path_root, config.engine.load_timeout_seconds
        ),
        admin_routes.admin_guard(foundation.admin_key, authenticator.is_tenant_key),
        threads,
    )
    http = build_http(
        services=data_plane.services,
        health=health,
        metrics=foundation.metrics,
        options=HttpOptions(
            max_body_bytes=config.server.max_body_bytes,
            body_seconds=config.server.body_timeout_seconds,
            metrics_key=authenticator.is_admin_key if are_metrics_closed(config) else None,
            cors_origins=cors_origins(config.server),
        ),
        threads=threads,
        routers=[admin, lora],
    )
    return Server(
        config=config.server,
        http=http,
        grpc=grpc,
        health=health,
        admission=data_plane.admission,
        deadlines=data_plane.deadlines,
        background=foundation.background,
        registry_lock=foundation.registry_lock,
    )
