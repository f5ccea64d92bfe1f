"""The trainer's whole way in some minutes: raw tickets to an adapter that answers.

Looks at the raw data, cleans and splits them, trains, evaluates against the base model, publishes
through the gate, merges, serves and asks. Every step is a `loragate` command that you can run
yourself, and is printed before it runs; at the end it says how long each took and where the reports
are. Run it with `make demo-train`.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table

from loragate.adapters.errors import LoragateError, TenantExists
from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[1]
LORAGATE = Path(sys.executable).with_name("loragate")
RUN_FILE = ROOT / "examples/train/tickets.toml"
RAW = ROOT / "examples/data/tickets.csv"
RUN = ROOT / "runs/tickets"
INSTRUCTION = "Which queue: billing, outage, meter, moving, contract or complaint?"
TICKETS = (
    "The lights went out in our whole street at six this morning.",
    "You took the monthly amount from my account twice.",
    "I get the keys to my new flat on Monday, what do you need from me?",
)
URL = "http://127.0.0.1:8000"
START_SECONDS = 300.0
REPORTS = {
    "data/report.html": "what was in the raw data, what was dropped and why",
    "loss.png": "the losses by step",
    "evaluation/report.html": "what the adapter gained over the base model, on unseen tickets",
}
console = Console(highlight=False)


@dataclass
class Times:
    """How long each step of the demo took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        console.print(f"\n[bold cyan]$ {step}[/]")
        began = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - began

    def say(self) -> None:
        table = Table("Step", Column("Time", justify="right"), box=box.SIMPLE_HEAD)
        for step, seconds in self.seconds.items():
            table.add_row(step, f"{seconds:.0f} s")
        table.add_row("[bold]all of it[/]", f"[bold]{sum(self.seconds.values()):.0f} s[/]")
        console.print(table)


def main() -> int:
    """Runs the demo; returns the exit status."""
    times = Times()
    try:
        _run(times)
    except (LoragateError, subprocess.CalledProcessError) as error:
        console.print(f"[red]demo:[/] {error}")
        return 1
    times.say()
    console.print("[green]✓[/] Made on the way:")
    for path, what in REPORTS.items():
        console.print(f"  {_relative(RUN / path)}: {what}", soft_wrap=True)
    return 0


def _run(times: Times) -> None:
    if _answers(f"{URL}/livez"):
        raise LoragateError(f"A server answers at {URL} already; stop it first.")
    key = _tenant_key()
    shutil.rmtree(RUN, ignore_errors=True)
    _loragate(times, "model", "prepare")
    _loragate(
        times,
        *("data", "check", _relative(RAW), "--bad-rows", "drop"),
        *("--label-field", "output", "--group-field", "customer"),
    )
    _loragate(times, "train", _relative(RUN_FILE))
    _loragate(times, "adapter", "show", "acme/tickets")
    with times.of("loragate serve"), _serving() as url:
        for ticket in TICKETS:
            base, adapter = (_ask(url, key, model, ticket) for model in ("base", "tickets"))
            console.print(Panel(f"base:    {base}\ntickets: {adapter}", title=ticket))


def _tenant_key() -> str:
    home = Home.from_environment().ensure()
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        try:
            return registry.tenants.create("acme", actor="demo").key
        except TenantExists:
            return registry.tenants.create_key("acme", "demo", "demo").key


def _loragate(times: Times, *arguments: str) -> None:
    with times.of(f"loragate {' '.join(arguments)}"):
        subprocess.run([str(LORAGATE), *arguments], check=True, cwd=ROOT)


@contextmanager
def _serving() -> Iterator[str]:
    """Runs `loragate serve` until the block is left; gives its address."""
    log_path = RUN / "serve.log"
    with log_path.open("wb") as log:
        server = subprocess.Popen([str(LORAGATE), "serve"], stdout=log, stderr=log, cwd=ROOT)
        try:
            _wait_until_ready(server, log_path)
            yield URL
        finally:
            server.terminate()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise LoragateError(f"The server ended; {log_path} says why.")
        if _answers(f"{URL}/readyz"):
            return
        time.sleep(0.3)
    raise LoragateError(f"The server was not ready in {START_SECONDS:g} s; see {log_path}.")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def _ask(url: str, key: str, model: str, ticket: str) -> str:
    response = httpx.post(
        f"{url}/v1/chat/completions",
        headers={"authorization": f"Bearer {key}"},
        json={
            "model": model,
            "messages": [{"role": "user", "content": f"{INSTRUCTION}\n\n{ticket}"}],
            "max_tokens": 16,
            "temperature": 0,
        },
        timeout=120,
    )
    if not response.is_success:
        raise LoragateError(f"The server answered {response.status_code}: {response.text}")
    answer: str = json.loads(response.text)["choices"][0]["message"]["content"]
    return answer


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
