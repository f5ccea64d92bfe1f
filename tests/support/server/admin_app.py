"""The admin routes as a server would include them, with the smallest error handler there is."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from loragate.adapters.errors import LoragateError
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.registry import Registry
from loragate.server.admin.administration import Administration
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.http.admin_routes import build_router
from loragate.server.wire.statuses import describe

ADMIN_KEY = "lg-admin-test"
MAX_ADAPTER_BYTES = 100_000


def build_app(registry: Registry) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(LoragateError)
    async def answer(_request: Request, error: LoragateError) -> JSONResponse:
        failure = describe(error)
        body = {"message": failure.message, "type": failure.status.type, "code": failure.code}
        return JSONResponse({"error": body}, failure.status.http_status)

    def is_tenant_key(key: str) -> bool:
        return registry.snapshot().tenant_of_key(hash_key(key)) is not None

    administration = Administration(registry, "http")
    app.include_router(
        build_router(
            administration,
            ADMIN_KEY,
            FairThreads(),
            is_tenant_key=is_tenant_key,
            max_adapter_bytes=MAX_ADAPTER_BYTES,
        )
    )
    return app


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serves on a free local port, in a thread; yields the URL.

    The socket listens from the start, so the first request waits instead of failing.
    """
    # Its logging would close the handlers of others, and one of them closes the stream under them.
    config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
