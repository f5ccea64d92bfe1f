"""Tenants, keys and adapters for a run, through the server's public administration API."""

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from loadtests.lora_folders import write_random_adapter
from loadtests.scenarios import Scenario
from loadtests.target import Adapter, Target, Tenant

_TIMEOUT_SECONDS = 120.0
_PROMOTION_SECONDS = 120.0


class PreparationFailed(Exception):
    """The server refused something that the run needs, or does not have it."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A running server; `server_pid` where it is a process of this suite's own."""

    http: str
    grpc: str
    admin_key: str
    server_pid: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def prepare(server: Reached, scenario: Scenario, like: Path, prefix: str) -> Target:
    """Makes the tenants and adapters that the scenario asks for, with names under `prefix`.

    The adapters have the layers of the one at `like`. Raises PreparationFailed.
    """
    headers = {"authorization": f"Bearer {server.admin_key}"}
    seeds = itertools.count()
    with httpx.Client(base_url=server.http, headers=headers, timeout=_TIMEOUT_SECONDS) as admin:
        try:
            tenants = [
                _make_tenant(admin, f"{prefix}-{number}", scenario, like, seeds)
                for number in range(scenario.tenants)
            ]
            has_flood = any(phase.flood for phase in scenario.phases)
            flooder = _make_flooder(admin, f"{prefix}-noisy", scenario) if has_flood else None
            base = _base_model(admin, tenants[0].key)
            merged = _merged_models(admin, tenants)
        except httpx.TransportError as error:
            raise PreparationFailed(f"{server.http} cannot be reached: {error}") from None
    return Target(
        http=server.http,
        grpc=server.grpc,
        tenants=tuple(tenants),
        flooder=flooder,
        admin_key=server.admin_key,
        server_pid=server.server_pid,
        base=base,
        merged=merged,
        settings=dict(server.settings),
    )


def remove(target: Target) -> None:
    """Deletes the tenants again; what they published can then be collected."""
    headers = {"authorization": f"Bearer {target.admin_key}"}
    with httpx.Client(base_url=target.http, headers=headers, timeout=_TIMEOUT_SECONDS) as admin:
        for tenant in target.everybody:
            _ask(admin, "DELETE", f"/admin/v1/tenants/{tenant.name}")


def _make_tenant(
    admin: httpx.Client, name: str, scenario: Scenario, like: Path, seeds: Iterator[int]
) -> Tenant:
    key = _ask(admin, "POST", "/admin/v1/tenants", json={"tenant": name}).json()["key"]
    adapters = [
        _make_adapter(
            admin, name, f"adapter-{number}", [next(seeds) for _ in range(scenario.versions)], like
        )
        for number in range(scenario.adapters)
    ]
    for adapter in adapters:
        _wait_until_served(admin, name, adapter)
    return Tenant(name, key, tuple(adapters))


def _make_flooder(admin: httpx.Client, name: str, scenario: Scenario) -> Tenant:
    body = {"tenant": name, "limits": dict(scenario.flooder_limits)}
    return Tenant(name, _ask(admin, "POST", "/admin/v1/tenants", json=body).json()["key"])


def _make_adapter(
    admin: httpx.Client, tenant: str, name: str, seeds: list[int], like: Path
) -> Adapter:
    path = f"/admin/v1/tenants/{tenant}/adapters/{name}"
    published = [_publish(admin, path, like, seed) for seed in seeds]
    _ask(admin, "PUT", f"{path}/aliases/champion", json={"version": published[0]})
    return Adapter(name, tuple(published))


def _publish(admin: httpx.Client, path: str, like: Path, seed: int) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_random_adapter(Path(scratch) / "adapter", like, seed)
        files = [("files", (file.name, file.read_bytes())) for file in folder.iterdir()]
        version: str = _ask(admin, "POST", f"{path}/versions", files=files).json()["version"]
        return version


def _wait_until_served(admin: httpx.Client, tenant: str, adapter: Adapter) -> None:
    path = f"/admin/v1/tenants/{tenant}/adapters/{adapter.name}"
    deadline = time.monotonic() + _PROMOTION_SECONDS
    while time.monotonic() < deadline:
        page = _ask(admin, "GET", path).json()
        if page["serving"].get("champion") == adapter.versions[0]:
            return
        failed = [each["reason"] for each in page["versions"] if each["state"] == "FAILED"]
        if failed:
            raise PreparationFailed(f"{tenant}/{adapter.name} is not served: {failed[0]}")
        time.sleep(0.1)
    raise PreparationFailed(
        f"{tenant}/{adapter.name} is not served after {_PROMOTION_SECONDS:.0f} s."
    )


def _base_model(admin: httpx.Client, key: str) -> str:
    """The name under which a tenant finds the model without an adapter."""
    cards = _models(admin, key)
    return next((str(card["id"]) for card in cards if card.get("adapter") == "base"), "base")


def _merged_models(admin: httpx.Client, tenants: list[Tenant]) -> dict[str, str]:
    """Adapters that the server also offers merged: the names of its models say so."""
    found: dict[str, str] = {}
    for tenant in tenants:
        for card in _models(admin, tenant.key):
            if str(card["id"]).endswith("+merged"):
                adapter = str(card["adapter"]).partition("@")[0]
                found[adapter] = str(card["id"])
    return found


def _models(admin: httpx.Client, key: str) -> list[dict[str, object]]:
    headers = {"authorization": f"Bearer {key}"}
    models: list[dict[str, object]] = _ask(admin, "GET", "/v1/models", headers=headers).json()[
        "data"
    ]
    return models


def _ask(admin: httpx.Client, method: str, path: str, **what: object) -> httpx.Response:
    response = admin.request(method, path, **what)  # pyright: ignore[reportArgumentType]
    if response.is_error:
        raise PreparationFailed(f"{method} {path}: {response.status_code} {response.text}")
    return response
