"""Administration of a remote server: a client of its `/admin/v1`."""

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from loragate.adapters.format.files import inspect
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.merged_states import Mode
from loragate.adapters.registry.pages import Page
from loragate.adapters.registry.snapshot import Limits
from loragate.adapters.registry.trial_records import TrialKind
from loragate.server.admin.trial_views import (
    ExperimentRequest,
    ReportView,
    RolloutRequest,
    TrialChange,
    TrialView,
)
from loragate.server.admin.views import (
    MOST_WAIT_SECONDS,
    AdapterPageView,
    AdapterView,
    AliasRequest,
    CollectedView,
    EngineView,
    KeyRequest,
    KeyView,
    LimitsChange,
    LimitsRequest,
    LimitsView,
    NewKeyView,
    PublishedView,
    RevisionView,
    TenantRequest,
    TenantView,
    UsageView,
)
from loragate.server.admin_client.remote_errors import (
    NotLoragate,
    authorization,
    require_success,
    speaking_with,
)

T = TypeVar("T")
Upload = tuple[str, tuple[str, IO[bytes]]]  # form field, file name, content
# A large adapter may take the server minutes to copy and check; connecting may not.
_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


class RemoteAdmin:
    """An AdminPort over HTTP. Use it as a context manager: it keeps the connection."""

    def __init__(
        self, url: str, admin_key: str, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            headers=authorization(admin_key), timeout=_TIMEOUT, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def revision(self, unlike: int, within_seconds: float) -> int:
        seconds = min(max(0.0, within_seconds), MOST_WAIT_SECONDS)
        query = {"unlike": str(unlike), "wait_seconds": str(seconds)}
        return self._ask(RevisionView, "GET", "/revision", query=query).revision

    def create_tenant(self, tenant: str, limits: Limits) -> NewKeyView:
        wanted = LimitsChange.model_validate(LimitsView.of(limits).model_dump())
        return self._ask(
            NewKeyView, "POST", "/tenants", TenantRequest(tenant=tenant, limits=wanted)
        )

    def list_tenants(self, page: Page) -> Sequence[TenantView]:
        return self._ask(list[TenantView], "GET", "/tenants", query=_paged(page))

    def set_limits(self, tenant: str, change: LimitsChange) -> TenantView:
        return self._ask(
            TenantView, "PATCH", _path("tenants", tenant), LimitsRequest(limits=change)
        )

    def delete_tenant(self, tenant: str) -> None:
        self._send("DELETE", _path("tenants", tenant))

    def create_key(self, tenant: str, name: str) -> NewKeyView:
        return self._ask(
            NewKeyView, "POST", _path("tenants", tenant, "keys"), KeyRequest(name=name)
        )

    def list_keys(self, tenant: str, page: Page) -> Sequence[KeyView]:
        path = _path("tenants", tenant, "keys")
        return self._ask(list[KeyView], "GET", path, query=_paged(page))

    def revoke_key(self, key_id: str) -> None:
        self._send("DELETE", _path("keys", key_id))

    def publish(self, adapter: AdapterName, folder: Path) -> PublishedView:
        """The folder is checked here first, so that a bad one is not uploaded."""
        with ExitStack() as stack:
            files = [
                ("files", (file.name, stack.enter_context(file.path.open("rb"))))
                for file in inspect(folder).files
            ]
            response = self._send("POST", _adapter(adapter, "versions"), files=files)
        return _parse(PublishedView, response)

    def adapters(self, tenant: str | None, page: Page) -> Sequence[AdapterView]:
        return self._ask(
            list[AdapterView],
            "GET",
            "/adapters",
            query=_paged(page, tenant=tenant),
        )

    def show(self, adapter: AdapterName) -> AdapterPageView:
        return self._ask(AdapterPageView, "GET", _adapter(adapter))

    def set_alias(
        self,
        adapter: AdapterName,
        alias: str,
        number: int,
        reason: str,
        mode: Mode = "unmerged",
    ) -> PublishedView:
        body = AliasRequest(version=f"v{number}", reason=reason, mode=mode)
        return self._ask(PublishedView, "PUT", _adapter(adapter, "aliases", alias), body)

    def serve_merged(self, adapter: AdapterName, number: int) -> PublishedView:
        path = _adapter(adapter, "versions", f"v{number}", "merged")
        return self._ask(PublishedView, "PUT", path)

    def stop_merged(self, adapter: AdapterName, number: int) -> PublishedView:
        path = _adapter(adapter, "versions", f"v{number}", "merged")
        return self._ask(PublishedView, "DELETE", path)

    def engines(self) -> Sequence[EngineView]:
        return self._ask(list[EngineView], "GET", "/engines")

    def delete_alias(self, adapter: AdapterName, alias: str) -> None:
        self._send("DELETE", _adapter(adapter, "aliases", alias))

    def rollback(self, adapter: AdapterName) -> PublishedView:
        return self._ask(PublishedView, "POST", _adapter(adapter, "rollback"))

    def retire(self, adapter: AdapterName, number: int) -> None:
        self._send("POST", _adapter(adapter, "versions", f"v{number}", "retire"))

    def pin(self, adapter: AdapterName, selector: str) -> PublishedView:
        return self._ask(PublishedView, "PUT", _adapter(adapter, "pins", selector))

    def unpin(self, adapter: AdapterName, selector: str) -> PublishedView:
        return self._ask(PublishedView, "DELETE", _adapter(adapter, "pins", selector))

    def collect(self, *, is_dry_run: bool = False, unreferenced: bool = False) -> CollectedView:
        query = _query(
            dry_run="true" if is_dry_run else None,
            unreferenced="true" if unreferenced else None,
        )
        return self._ask(CollectedView, "POST", "/collect", query=query)

    def start_rollout(self, adapter: AdapterName, body: RolloutRequest) -> TrialView:
        return self._ask(TrialView, "POST", _adapter(adapter, "rollouts"), body)

    def start_experiment(self, adapter: AdapterName, body: ExperimentRequest) -> TrialView:
        return self._ask(TrialView, "POST", _adapter(adapter, "experiments"), body)

    def trials(self, tenant: str | None, kind: TrialKind | None, page: Page) -> Sequence[TrialView]:
        query = _paged(page, tenant=tenant, kind=kind)
        return self._ask(list[TrialView], "GET", "/trials", query=query)

    def trial_report(self, adapter: AdapterName, kind: TrialKind | None) -> ReportView:
        path = _adapter(adapter, "trial")
        return self._ask(ReportView, "GET", path, query=_query(kind=kind))

    def change_trial(self, adapter: AdapterName, body: TrialChange) -> TrialView:
        return self._ask(TrialView, "POST", _adapter(adapter, "trial"), body)

    def usage(self, tenant: str | None, since: datetime | None, page: Page) -> Sequence[UsageView]:
        moment = None if since is None else since.isoformat()
        query = _paged(page, tenant=tenant, since=moment)
        return self._ask(list[UsageView], "GET", "/usage", query=query)

    def _ask(
        self,
        shape: type[T],
        method: str,
        path: str,
        body: BaseModel | None = None,
        query: dict[str, str] | None = None,
    ) -> T:
        json = None if body is None else body.model_dump(mode="json", exclude_unset=True)
        return _parse(shape, self._send(method, path, json=json, params=query))

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: dict[str, str] | None = None,
        files: Sequence[Upload] = (),
    ) -> httpx.Response:
        request = f"{self._url}/admin/v1{path}"
        with speaking_with(self._url):
            response = self._http.request(
                method, request, json=json, params=params, files=list(files) or None
            )
        require_success(response)
        return response


def _parse(shape: type[T], response: httpx.Response) -> T:
    try:
        return TypeAdapter(shape).validate_json(response.content)
    except ValidationError:
        raise NotLoragate(response.url, response.status_code) from None


def _query(**parts: str | None) -> dict[str, str]:
    return {name: part for name, part in parts.items() if part is not None}


def _paged(page: Page, **parts: str | None) -> dict[str, str]:
    return _query(**parts, limit=str(page.limit), after=page.after or None)


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _adapter(adapter: AdapterName, *parts: str) -> str:
    return _path("tenants", adapter.tenant, "adapters", adapter.name, *parts)
