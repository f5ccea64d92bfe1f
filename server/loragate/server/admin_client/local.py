"""Administration on this machine: the registry in `LORAGATE_HOME`, without a server."""

import getpass
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.adapters.base_models.preparation import find
from loragate.adapters.errors import BaseModelError
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.home import Home
from loragate.adapters.importing.importing import Importer
from loragate.adapters.importing.proof import Prover
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.merged_states import Mode
from loragate.adapters.registry.pages import Page
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import Limits
from loragate.adapters.registry.trial_records import TrialKind
from loragate.adapters.settings import DEFAULT_ORPHANS_AFTER_SECONDS
from loragate.adapters.store import ArtifactStore
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
from loragate.server.config import EngineConfig, load_config, read_chat_template

if TYPE_CHECKING:
    from loragate.server.admin_client.local_trials import LocalTrials


_LOOK_SECONDS = 0.1


class LocalAdmin:
    """An AdminPort over an open registry, which the caller closes."""

    def __init__(
        self,
        registry: Registry,
        actor: str,
        orphans_after_seconds: float = DEFAULT_ORPHANS_AFTER_SECONDS,
    ) -> None:
        self._registry = registry
        self._actor = actor
        self._orphans_after_seconds = orphans_after_seconds

    def revision(self, unlike: int, within_seconds: float) -> int:
        deadline = time.monotonic() + within_seconds
        while True:
            revision = self._registry.revision()  # one row, by its key
            if revision != unlike or time.monotonic() >= deadline:
                return revision
            time.sleep(_LOOK_SECONDS)

    def create_tenant(self, tenant: str, limits: Limits) -> NewKeyView:
        return NewKeyView.of(self._registry.tenants.create(tenant, limits, self._actor))

    def list_tenants(self, page: Page) -> Sequence[TenantView]:
        return [TenantView.of(record) for record in self._registry.tenants.list(page)]

    def set_limits(self, tenant: str, change: LimitsChange) -> TenantView:
        limits = change.apply(self._tenant(tenant).limits.to_limits())
        self._registry.tenants.set_limits(tenant, limits, self._actor)
        return self._tenant(tenant)

    def delete_tenant(self, tenant: str) -> None:
        self._registry.tenants.delete(tenant, self._actor)

    def create_key(self, tenant: str, name: str) -> NewKeyView:
        return NewKeyView.of(self._registry.tenants.create_key(tenant, name, self._actor))

    def list_keys(self, tenant: str, page: Page) -> Sequence[KeyView]:
        return [KeyView.of(record) for record in self._registry.tenants.list_keys(tenant, page)]

    def revoke_key(self, key_id: str) -> None:
        self._registry.tenants.revoke_key(key_id, self._actor)

    def publish(self, adapter: AdapterName, folder: Path) -> PublishedView:
        return PublishedView.of(self._registry.versions.publish(adapter, folder, self._actor))

    def adapters(self, tenant: str | None, page: Page) -> Sequence[AdapterView]:
        return [AdapterView.of(listing) for listing in self._registry.adapters(tenant, page)]

    def show(self, adapter: AdapterName) -> AdapterPageView:
        return AdapterPageView.of(self._registry.versions.show(adapter))

    def set_alias(
        self,
        adapter: AdapterName,
        alias: str,
        number: int,
        reason: str,
        mode: Mode = "unmerged",
    ) -> PublishedView:
        return PublishedView.of(
            self._registry.aliases.set(adapter, alias, number, self._actor, reason, mode)
        )

    def serve_merged(self, adapter: AdapterName, number: int) -> PublishedView:
        return PublishedView.of(self._registry.merged.serve(adapter, number, self._actor))

    def stop_merged(self, adapter: AdapterName, number: int) -> PublishedView:
        return PublishedView.of(self._registry.merged.stop(adapter, number, self._actor))

    def delete_alias(self, adapter: AdapterName, alias: str) -> None:
        self._registry.aliases.delete(adapter, alias, self._actor)

    def rollback(self, adapter: AdapterName) -> PublishedView:
        return PublishedView.of(self._registry.aliases.rollback(adapter, self._actor))

    def retire(self, adapter: AdapterName, number: int) -> None:
        self._registry.states.retire(adapter, number, self._actor)

    def pin(self, adapter: AdapterName, selector: str) -> PublishedView:
        return PublishedView.of(self._registry.pins.add(adapter, selector, self._actor))

    def unpin(self, adapter: AdapterName, selector: str) -> PublishedView:
        return PublishedView.of(self._registry.pins.remove(adapter, selector, self._actor))

    def collect(self, *, is_dry_run: bool = False, unreferenced: bool = False) -> CollectedView:
        registry = self._registry
        function = (
            registry.artifacts.collectable
            if is_dry_run
            else partial(registry.artifacts.collect, self._actor)
        )
        collected = function(
            orphans_after_seconds=self._orphans_after_seconds, unreferenced=unreferenced
        )
        return CollectedView(collected=collected)

    def start_rollout(self, adapter: AdapterName, body: RolloutRequest) -> TrialView:
        return self._trials().start_rollout(adapter, body)

    def start_experiment(self, adapter: AdapterName, body: ExperimentRequest) -> TrialView:
        return self._trials().start_experiment(adapter, body)

    def trials(self, tenant: str | None, kind: TrialKind | None, page: Page) -> Sequence[TrialView]:
        return self._trials().trials(tenant, kind, page)

    def trial_report(self, adapter: AdapterName, kind: TrialKind | None) -> ReportView:
        return self._trials().report(adapter, kind)

    def change_trial(self, adapter: AdapterName, body: TrialChange) -> TrialView:
        return self._trials().change(adapter, body)

    def usage(self, tenant: str | None, since: datetime | None, page: Page) -> Sequence[UsageView]:
        return [UsageView.of(total) for total in self._registry.usage.totals(tenant, since, page)]

    def _trials(self) -> "LocalTrials":
        # Statistics take a second to import, which other commands do not wait for.
        from loragate.server.admin_client.local_trials import LocalTrials

        return LocalTrials(self._registry, self._actor)

    def _tenant(self, tenant: str) -> TenantView:
        return TenantView.of(self._registry.tenants.get(tenant))


@contextmanager
def open_local() -> Iterator[LocalAdmin]:
    """The registry that a server started here would serve from."""
    home = Home.from_environment().ensure()
    config = load_config(None)
    url = config.registry.url or home.database_url
    publish_check = PublishCheck(_base(config.engine, home), config.engine.max_lora_rank)
    with Registry(url, ArtifactStore(home.artifacts), publish_check) as registry:
        yield LocalAdmin(registry, f"cli:{_user()}", config.registry.orphans_after_seconds)


def local_importer() -> Importer:
    """For the base model that a server started here would hold, where one is prepared."""
    home, engine = Home.from_environment(), load_config(None).engine
    try:
        model = find(engine.model, home.models).path
    except BaseModelError:
        model = None
    return Importer(_base(engine, home), model, engine.max_lora_rank)


def local_prover() -> Prover:
    """For the same base model, rendered as that server would."""
    home, engine = Home.from_environment(), load_config(None).engine
    try:
        base = find(engine.model, home.models)
    except BaseModelError:
        base = None
    return Prover(
        base, home.cache / "proofs", read_chat_template(engine), engine.special_tokens_in_text
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that it has no name for
        return f"uid {os.getuid()}"


def _base(engine: EngineConfig, home: Home) -> BaseProfile | None:
    """The configured base model; None if it is not prepared, where the server will look again."""
    try:
        return BaseProfile.read(find(engine.model, home.models), read_chat_template(engine))
    except BaseModelError:
        return None
