"""Administration as the command line sees it: one interface, on this machine or on a remote server.

`open_admin` chooses: with a URL the server is asked over HTTP, without one the registry in
`LORAGATE_HOME` is opened, and no server need run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from loragate.adapters.errors import LoragateError
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
    AdapterPageView,
    AdapterView,
    CollectedView,
    KeyView,
    LimitsChange,
    NewKeyView,
    PublishedView,
    TenantView,
    UsageView,
)


class AdminKeyMissing(LoragateError):
    """A remote server was named without the key to it."""


class AdminPort(Protocol):
    """Every method raises LoragateError with a sentence that can be shown as it is."""

    def revision(self, unlike: int, within_seconds: float) -> int:
        """The registry's, once it is unlike this one, or when the time is up, or earlier."""
        ...

    def create_tenant(self, tenant: str, limits: Limits) -> NewKeyView: ...
    def list_tenants(self, page: Page) -> Sequence[TenantView]: ...
    def set_limits(self, tenant: str, change: LimitsChange) -> TenantView: ...
    def delete_tenant(self, tenant: str) -> None: ...
    def create_key(self, tenant: str, name: str) -> NewKeyView: ...
    def list_keys(self, tenant: str, page: Page) -> Sequence[KeyView]: ...
    def revoke_key(self, key_id: str) -> None: ...
    def publish(self, adapter: AdapterName, folder: Path) -> PublishedView: ...
    def adapters(self, tenant: str | None, page: Page) -> Sequence[AdapterView]: ...
    def show(self, adapter: AdapterName) -> AdapterPageView: ...
    def set_alias(
        self,
        adapter: AdapterName,
        alias: str,
        number: int,
        reason: str,
        mode: Mode = "unmerged",
    ) -> PublishedView: ...
    def serve_merged(self, adapter: AdapterName, number: int) -> PublishedView: ...
    def stop_merged(self, adapter: AdapterName, number: int) -> PublishedView: ...
    def delete_alias(self, adapter: AdapterName, alias: str) -> None: ...
    def rollback(self, adapter: AdapterName) -> PublishedView: ...
    def retire(self, adapter: AdapterName, number: int) -> None: ...
    def pin(self, adapter: AdapterName, selector: str) -> PublishedView: ...
    def unpin(self, adapter: AdapterName, selector: str) -> PublishedView: ...
    def collect(self, *, is_dry_run: bool = False, unreferenced: bool = False) -> CollectedView: ...
    def start_rollout(self, adapter: AdapterName, body: RolloutRequest) -> TrialView: ...
    def start_experiment(self, adapter: AdapterName, body: ExperimentRequest) -> TrialView: ...
    def trials(
        self, tenant: str | None, kind: TrialKind | None, page: Page
    ) -> Sequence[TrialView]: ...
    def trial_report(self, adapter: AdapterName, kind: TrialKind | None) -> ReportView: ...
    def change_trial(self, adapter: AdapterName, body: TrialChange) -> TrialView: ...
    def usage(
        self, tenant: str | None, since: datetime | None, page: Page
    ) -> Sequence[UsageView]: ...


@contextmanager
def open_admin(url: str | None, key: str | None) -> Iterator[AdminPort]:
    """The registry behind `url`, or the one in LORAGATE_HOME; closed at the end of the block."""
    if url is None:
        from loragate.server.admin_client.local import open_local

        with open_local() as admin:
            yield admin
        return
    if not key:
        raise AdminKeyMissing(
            f"The admin key of {url} is needed: set LORAGATE_ADMIN_KEY or pass --key "
            "(the server keeps it in LORAGATE_HOME/admin.key)."
        )
    from loragate.server.admin_client.remote import RemoteAdmin

    with RemoteAdmin(url, key) as admin:
        yield admin
