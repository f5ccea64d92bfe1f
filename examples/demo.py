"""The main job in one minute: one base model, two tenants, two adapters, one question to all three.

Prepares the base model, publishes the example adapters, serves, asks, shows the answers side by
side, and goes on serving until Ctrl-C. Run it with `make demo`.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from loragate.adapters.base_models.preparation import prepare
from loragate.adapters.errors import LoragateError, TenantExists
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.records import NewKey
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.config import Config, load_config

EXAMPLES = Path(__file__).parent / "adapters"
QUESTION = "I smell gas in my hallway. What should I do?"
START_SECONDS = 300.0
console = Console()


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of the demo with its one adapter."""

    name: str
    adapter: str
    about: str


TENANTS = (
    Tenant("acme", "support", "a gas utility's support agent, in its house style"),
    Tenant("globex", "router", "a ticket router that answers with one JSON object"),
)


def main() -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", nargs="?", default=QUESTION, help="what to ask all three")
    parser.add_argument("--once", action="store_true", help="stop after the answers")
    arguments = parser.parse_args()
    try:
        return _run(load_config(None), arguments.question, arguments.once)
    except LoragateError as error:
        console.print(f"[red]demo:[/] {error}")
        return 1


def _run(config: Config, question: str, once: bool) -> int:
    home = Home.from_environment().ensure()
    with Progress(console=console) as progress:
        base = prepare(config.engine.model, home.models, progress)
    console.print(f"[green]✓[/] base model [bold]{base.name}[/]")
    url = config.registry.url or home.database_url
    with Registry(url, ArtifactStore(home.artifacts)) as registry:
        keys = {tenant: _set_up(registry, tenant) for tenant in TENANTS}
        try:
            with _serving(home, config) as server:
                _show_answers(config, keys, question)
                if once:
                    return 0
                _show_how_to_go_on(config, keys)
                server.wait()
                raise LoragateError(f"The server ended; {home.root / 'demo.log'} says why.")
        except KeyboardInterrupt:
            console.print("\nstopping")
        finally:
            for key in keys.values():
                registry.tenants.revoke_key(key.key_id, "demo")
    return 0


def _set_up(registry: Registry, tenant: Tenant) -> NewKey:
    """Makes the tenant with its adapter, or finds what an earlier run made; returns a fresh key."""
    try:
        key = registry.tenants.create(tenant.name, actor="demo")
    except TenantExists:
        key = registry.tenants.create_key(tenant.name, "demo", "demo")
    adapter = AdapterName(tenant.name, tenant.adapter)
    version = registry.versions.publish(
        adapter, EXAMPLES / f"{tenant.name}-{tenant.adapter}", "demo"
    )
    registry.aliases.set(adapter, "champion", version.number, "demo", "demo")
    console.print(f"[green]✓[/] published [bold]{version}[/]: {tenant.about}")
    return key


@contextmanager
def _serving(home: Home, config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `loragate serve`, its log in a file, until the block is left."""
    log_path = home.root / "demo.log"
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "loragate.server.cli.main", "serve"]
        # In a session of its own: Ctrl-C is for the demo, which then asks the server to stop.
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(server, config, log_path)
            yield server
        finally:
            server.terminate()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], config: Config, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    columns = (SpinnerColumn(), TextColumn("starting the engine"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("", total=None)
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise LoragateError(f"The server ended; {log_path} says why.")
            try:
                if httpx.get(f"http://{config.server.http}/readyz").is_success:
                    break
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.3)
        else:
            raise LoragateError(f"The server was not ready in {START_SECONDS:g} s; see {log_path}.")
    console.print(f"[green]✓[/] serving, log in {log_path}")


def _show_answers(config: Config, keys: dict[Tenant, NewKey], question: str) -> None:
    asks = [("base", TENANTS[0]), *((tenant.adapter, tenant) for tenant in TENANTS)]
    console.print(Panel(question, title="the same chat to all three", border_style="cyan"))
    panels = [
        Panel(answer, title=adapter, width=console.width // 3 - 1)
        for adapter, answer in (
            _ask(config, keys[tenant].key, model, question) for model, tenant in asks
        )
    ]
    console.print(Columns(panels, equal=True))


def _ask(config: Config, key: str, model: str, question: str) -> tuple[str, str]:
    """Returns the name of the adapter that answered, and its answer."""
    response = httpx.post(
        f"http://{config.server.http}/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json={
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 96,
            "temperature": 0,
        },
        timeout=120,
    )
    if not response.is_success:
        raise LoragateError(f"The server answered {response.status_code}: {response.text}")
    answer: str = response.json()["choices"][0]["message"]["content"]
    return response.headers["x-loragate-adapter"], answer


def _show_how_to_go_on(config: Config, keys: dict[Tenant, NewKey]) -> None:
    key = keys[TENANTS[0]].key
    console.print(
        f"\nHTTP on http://{config.server.http} (docs at /docs), gRPC on {config.server.grpc}. "
        "While the demo runs, in another terminal:\n\n"
        f"  .venv/bin/loragate chat acme/support --key {key}\n\n"
        "Ctrl-C stops.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


if __name__ == "__main__":
    sys.exit(main())
