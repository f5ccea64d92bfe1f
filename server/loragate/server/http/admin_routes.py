"""Administration over HTTP: `/admin/v1`, for whoever holds the admin key.

It raises; the application that includes the router turns exceptions into OpenAI's error object.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response, status
from fastapi.security import HTTPBearer
from pydantic import AfterValidator

from loragate.adapters.names import AdapterName, parse_version
from loragate.adapters.registry.pages import MOST_ROWS, Page
from loragate.adapters.registry.snapshot import Limits
from loragate.server.admin.administration import Administration, check_admin_key
from loragate.server.admin.paging import After, AskedPage, name_next
from loragate.server.admin.views import (
    MOST_WAIT_SECONDS,
    AdapterPageView,
    AdapterView,
    AliasRequest,
    AuditView,
    CollectedView,
    EngineView,
    KeyRequest,
    KeyView,
    LimitsRequest,
    NewKeyView,
    PublishedView,
    RevisionView,
    TenantRequest,
    TenantView,
    UsageView,
)
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.http.guarded_routes import Guard, guarded_by, sent_key
from loragate.server.http.multipart_files import read_files
from loragate.server.http.trial_routes import add_trials

DEFAULT_UPLOAD_BYTES = 2 * 2**30
_FILES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "description": "adapter_config.json and adapter_model.safetensors as "
                            "PEFT writes them; manifest.json and README.md if there are any.",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            }
        },
    }
}


def _in_utc(moment: datetime) -> datetime:
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise ValueError("the moment has no date in UTC") from None


Moment = Annotated[datetime, AfterValidator(_in_utc)]


# It tells clients what to send, and checks nothing.
ADMIN_KEY_HEADER = HTTPBearer(
    auto_error=False, scheme_name="AdminKey", description="The admin key."
)


def admin_guard(admin_key: str, is_tenant_key: Callable[[str], bool] | None = None) -> Guard:
    """Lets in whoever holds the admin key."""

    @contextmanager
    def for_the_admin(request: Request) -> Iterator[str]:
        check_admin_key(sent_key(request), admin_key, is_tenant_key)
        request.state.is_operator = True  # not before: a stranger learns no host or path
        yield ""

    return for_the_admin


def build_router(
    administration: Administration,
    admin_key: str,
    threads: FairThreads,
    *,
    is_tenant_key: Callable[[str], bool] | None = None,
    max_adapter_bytes: int = DEFAULT_UPLOAD_BYTES,
) -> APIRouter:
    """All routes of `/admin/v1`. `is_tenant_key` tells a tenant's key from an unknown one."""

    router = APIRouter(
        prefix="/admin/v1",
        dependencies=[Depends(ADMIN_KEY_HEADER)],
        route_class=guarded_by(admin_guard(admin_key, is_tenant_key), threads),
    )
    _add_revision(router, administration)
    _add_tenants(router, administration)
    _add_keys(router, administration)
    _add_adapters(router, administration)
    _add_versions(router, administration, max_adapter_bytes)
    _add_aliases(router, administration)
    _add_merged(router, administration)
    _add_pins(router, administration)
    add_trials(router, administration)
    _add_records(router, administration)
    return router


def _add_revision(router: APIRouter, administration: Administration) -> None:
    @router.get("/revision", tags=["operation"])
    async def get_revision(
        unlike: int = -1,
        wait_seconds: Annotated[float, Query(ge=0, le=MOST_WAIT_SECONDS)] = 0,
    ) -> RevisionView:
        """The registry's revision, which grows with every change; once it is unlike the given one,
        if that takes no longer than `wait_seconds`. Whoever waits for a change asks this.
        """
        return RevisionView(revision=await administration.revision(unlike, wait_seconds))


def _add_tenants(router: APIRouter, administration: Administration) -> None:
    @router.post("/tenants", status_code=status.HTTP_201_CREATED, tags=["tenants"])
    async def create_tenant(body: TenantRequest) -> NewKeyView:
        """Create a tenant with its first key, which is shown this once."""
        limits = body.limits.apply(Limits())
        return NewKeyView.of(await administration.create_tenant(body.tenant, limits))

    @router.get("/tenants", tags=["tenants"])
    async def list_tenants(page: AskedPage, response: Response) -> list[TenantView]:
        """List the tenants and their limits."""
        found = await administration.list_tenants(page)
        rows = name_next(response, found, page, lambda record: record.tenant)
        return [TenantView.of(record) for record in rows]

    @router.patch("/tenants/{tenant}", tags=["tenants"])
    async def set_limits(tenant: str, body: LimitsRequest) -> TenantView:
        """Change the limits that are named; the others stay as they are."""
        before = await administration.tenant(tenant)
        await administration.set_limits(tenant, body.limits.apply(before.limits))
        return TenantView.of(await administration.tenant(tenant))

    @router.delete("/tenants/{tenant}", status_code=status.HTTP_204_NO_CONTENT, tags=["tenants"])
    async def delete_tenant(tenant: str) -> None:
        """Delete a tenant: its keys stop working, and its id is never given again."""
        await administration.delete_tenant(tenant)


def _add_keys(router: APIRouter, administration: Administration) -> None:
    @router.post("/tenants/{tenant}/keys", status_code=status.HTTP_201_CREATED, tags=["keys"])
    async def create_key(tenant: str, body: KeyRequest) -> NewKeyView:
        """Create a further key for a tenant; it is shown this once."""
        return NewKeyView.of(await administration.create_key(tenant, body.name))

    @router.get("/tenants/{tenant}/keys", tags=["keys"])
    async def list_keys(tenant: str, page: AskedPage, response: Response) -> list[KeyView]:
        """List a tenant's keys by their public ids, oldest first."""
        found = await administration.list_keys(tenant, page)
        rows = name_next(response, found, page, lambda record: record.key_id)
        return [KeyView.of(record) for record in rows]

    @router.delete("/keys/{key_id}", status_code=status.HTTP_204_NO_CONTENT, tags=["keys"])
    async def revoke_key(key_id: str) -> None:
        """Revoke a key: running servers refuse it within a second."""
        await administration.revoke_key(key_id)


def _add_adapters(router: APIRouter, administration: Administration) -> None:
    @router.get("/adapters", tags=["adapters"])
    async def list_adapters(
        page: AskedPage, response: Response, tenant: str | None = None
    ) -> list[AdapterView]:
        """List the adapters of one tenant, or of all."""
        found = await administration.adapters(tenant, page)
        return [AdapterView.of(each) for each in name_next(response, found, page, str)]

    @router.get("/tenants/{tenant}/adapters/{name}", tags=["adapters"])
    async def show_adapter(tenant: str, name: str) -> AdapterPageView:
        """Show an adapter: its versions and their states, what serves, and the latest changes."""
        return AdapterPageView.of(await administration.show(AdapterName(tenant, name)))


def _add_versions(
    router: APIRouter, administration: Administration, max_adapter_bytes: int
) -> None:
    versions = "/tenants/{tenant}/adapters/{name}/versions"

    # The body is read by hand: declared as a form it would be stored before the key is checked.
    @router.post(
        versions,
        status_code=status.HTTP_201_CREATED,
        tags=["adapters"],
        openapi_extra=_FILES_BODY,
    )
    async def publish(tenant: str, name: str, request: Request) -> PublishedView:
        """Publish an adapter's files as its next version, immutable from then on.

        Send each as a file of a multipart form. The newest version is returned again where it is
        the same, byte for byte. Nobody is served the new version until an alias points to it.
        """
        content_type = request.headers.get("content-type", "")
        version = await administration.publish_files(
            AdapterName(tenant, name),
            read_files(content_type, request.stream()),
            max_adapter_bytes,
        )
        return PublishedView.of(version)

    @router.post(versions + "/{version}/retire", tags=["adapters"])
    async def retire(tenant: str, name: str, version: str) -> PublishedView:
        """Take a version out of service for good.

        Refused while an alias points to it or is served by it. Where the engine holds it, it is
        RETIRED as soon as its last request has ended; it gets no new ones from now on.
        """
        adapter, number = AdapterName(tenant, name), parse_version(version)
        return PublishedView.of(await administration.retire(adapter, number))

    @router.post("/collect", tags=["adapters"])
    async def collect(
        dry_run: Annotated[bool, Query(description="Only say what would be removed.")] = False,
        unreferenced: Annotated[
            bool,
            Query(
                description="Take all files that no version of this registry refers to and that "
                "are older than registry.orphans_after_seconds, however they came there. Only "
                "where no other registry keeps its files in the same folder."
            ),
        ] = False,
    ) -> CollectedView:
        """Remove the files of versions that are retired, and of publications that were killed;
        what any engine holds is left alone.
        """
        collected = await administration.collect(is_dry_run=dry_run, unreferenced=unreferenced)
        return CollectedView(collected=tuple(collected))


def _add_aliases(router: APIRouter, administration: Administration) -> None:
    adapter_path = "/tenants/{tenant}/adapters/{name}"

    @router.put(adapter_path + "/aliases/{alias}", tags=["aliases"])
    async def set_alias(tenant: str, name: str, alias: str, body: AliasRequest) -> PublishedView:
        """Say where an alias is to point; `champion` is what requests by plain name are served by.

        A server loads and checks the version beside the one that serves, which goes on until then.
        The adapter's page says under `serving` when it has taken over, or why it FAILED.
        """
        adapter, number = AdapterName(tenant, name), parse_version(body.version)
        version = await administration.set_alias(adapter, alias, number, body.reason, body.mode)
        return PublishedView.of(version)

    @router.delete(
        adapter_path + "/aliases/{alias}",
        status_code=status.HTTP_204_NO_CONTENT,
        tags=["aliases"],
    )
    async def delete_alias(tenant: str, name: str, alias: str) -> None:
        """Remove an alias; the version that it pointed to stays."""
        await administration.delete_alias(AdapterName(tenant, name), alias)

    @router.post(adapter_path + "/rollback", tags=["aliases"])
    async def rollback(tenant: str, name: str) -> PublishedView:
        """Point `champion` back to the version that served before, as if it were promoted."""
        return PublishedView.of(await administration.rollback(AdapterName(tenant, name)))


def _add_merged(router: APIRouter, administration: Administration) -> None:
    merged_path = "/tenants/{tenant}/adapters/{name}/versions/{version}/merged"

    @router.put(merged_path, tags=["merged models"])
    async def serve_merged(tenant: str, name: str, version: str) -> PublishedView:
        """Serve a version's merged model by an engine of its own, made first where there is none.

        The adapter's page says under `merged` how far that is, or why it was refused; ask again to
        have it tried again. Reach it as `NAME@v3+merged`, or by an alias whose `mode` is `merged`.
        """
        adapter, number = AdapterName(tenant, name), parse_version(version)
        return PublishedView.of(await administration.serve_merged(adapter, number))

    @router.delete(merged_path, tags=["merged models"])
    async def stop_merged(tenant: str, name: str, version: str) -> PublishedView:
        """Serve it no longer: what runs ends, then its memory is free.

        Refused while an alias, a rollout or an experiment sends requests to it.
        """
        adapter, number = AdapterName(tenant, name), parse_version(version)
        return PublishedView.of(await administration.stop_merged(adapter, number))

    @router.get("/engines", tags=["merged models"])
    async def list_engines() -> list[EngineView]:
        """List the base model's engine and those of merged models, with the memory of each."""
        return [EngineView.of(status) for status in await administration.engines()]


def _add_pins(router: APIRouter, administration: Administration) -> None:
    pin_path = "/tenants/{tenant}/adapters/{name}/pins/{selector}"

    @router.put(pin_path, tags=["adapters"])
    async def pin(tenant: str, name: str, selector: str) -> PublishedView:
        """Keep a version, `v3` or an alias's, in the engine, whatever else is asked for.

        The pin stays with the version where the alias moves on. Where a server has no room for it,
        the adapter's page says so under `pin_refusal`.
        """
        return PublishedView.of(await administration.pin(AdapterName(tenant, name), selector))

    @router.delete(pin_path, tags=["adapters"])
    async def unpin(tenant: str, name: str, selector: str) -> PublishedView:
        """Let a version be unloaded again when others need its room."""
        return PublishedView.of(await administration.unpin(AdapterName(tenant, name), selector))


def _add_records(router: APIRouter, administration: Administration) -> None:
    @router.get("/audit", tags=["records"])
    async def audit(
        response: Response,
        subject: Annotated[
            str | None, Query(description="A tenant or an adapter, with all that is theirs.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
        after: After = "",
    ) -> list[AuditView]:
        """List what was changed, by whom and why; newest first."""
        page = Page(limit, after)
        found = await administration.audit(subject, limit, page.after_number())
        rows = name_next(response, found, page, lambda row: str(row.id))
        return [AuditView.of(row) for row in rows]

    @router.get("/usage", tags=["records"])
    async def usage(
        page: AskedPage,
        response: Response,
        tenant: str | None = None,
        since: Annotated[
            Moment | None, Query(description="Count from here on; UTC where it has no zone.")
        ] = None,
    ) -> list[UsageView]:
        """Sum up requests and tokens for each tenant and adapter version."""
        found = await administration.usage_totals(tenant, since, page)
        rows = name_next(response, found, page, lambda total: f"{total.tenant}/{total.adapter}")
        return [UsageView.of(total) for total in rows]
