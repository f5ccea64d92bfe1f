"""The trainer's whole way in some minutes: raw tickets to an adapter that answers.

Looks at the raw data, cleans and splits them, trains, evaluates against the base model, publishes
through the gate, merges, serves and asks. Every step is a `loragate` command that you can run
yourself, and is printed before it runs. Run it with `make demo-train`.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.panel import Panel

from loragate.adapters.errors import LoragateError, TenantExists
from loragate.adapters.home import Home
from loragate.adapters.registry import Registry
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
START_SECONDS = 300.0
console = Console(highlight=False)


def main() -> int:
    """Runs the demo; returns the exit status."""
    began = time.monotonic()
    try:
        _run()
    except (LoragateError, subprocess.CalledProcessError) as error:
        console.print(f"[red]demo:[/] {error}")
        return 1
    console.print(
        f"[green]✓[/] all of it in {time.monotonic() - began:.0f} s. Look at "
        f"{_relative(RUN / 'data/report.html')}, {_relative(RUN / 'loss.png')} and "
        f"{_relative(RUN / 'evaluation/report.html')}."
    )
    return 0


def _run() -> None:
    key = _tenant_key()
    _loragate("model", "prepare")
    _loragate(
        *("data", "check", _relative(RAW), "--bad-rows", "drop"),
        *("--label-field", "output", "--group-field", "customer"),
    )
    shutil.rmtree(RUN, ignore_errors=True)
    _loragate("train", _relative(RUN_FILE))
    _loragate("adapter", "show", "acme/tickets")
    with _serving() as url:
        for ticket in TICKETS:
            base, adapter = (_ask(url, key, model, ticket) for model in ("base", "tickets"))
            console.print(Panel(f"base:    {base}\ntickets: {adapter}", title=ticket))


def _tenant_key() -> str:
    home = Home.from_environment().ensure()
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        try:
            return registry.create_tenant("acme", actor="demo").key
        except TenantExists:
            return registry.create_key("acme", "demo", "demo").key


def _loragate(*arguments: str) -> None:
    console.print(f"\n[bold cyan]$ loragate {' '.join(arguments)}[/]")
    subprocess.run([str(LORAGATE), *arguments], check=True, cwd=ROOT)


@contextmanager
def _serving() -> Iterator[str]:
    """Runs `loragate serve` until the block is left; gives its address."""
    console.print("\n[bold cyan]$ loragate serve[/]")
    log_path = RUN / "serve.log"
    with log_path.open("wb") as log:
        server = subprocess.Popen([str(LORAGATE), "serve"], stdout=log, stderr=log, cwd=ROOT)
        try:
            url = "http://127.0.0.1:8000"
            _wait_until_ready(server, url, log_path)
            yield url
        finally:
            server.terminate()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise LoragateError(f"The server ended; {log_path} says why.")
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise LoragateError(f"The server was not ready in {START_SECONDS:g} s; see {log_path}.")


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
