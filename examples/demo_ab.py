"""Merged or not, by experiment: 500 requests, half of the users to each, and the verdict.

Prepares the base model, publishes an example adapter, serves it both ways on loopback ports, runs
the experiment through the public API as an operator and its users would, and leaves the report as
a page. Everything is in a folder of its own, which is removed at the end. Run it with
`make demo-ab`.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress

from loragate.adapters.base_models.preparation import DEFAULT_MODEL, prepare
from loragate.adapters.errors import LoragateError
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.comparison.own_server import own_server

ADAPTER = AdapterName("acme", "support")
FOLDER = Path(__file__).parent / "adapters" / "acme-support"
QUESTIONS = (
    "I smell gas in my hallway. What should I do?",
    "My last invoice is twice as high as usual. Why?",
    "How do I change the name on my account?",
    "The app says error 403 when I log in.",
)
ANSWER_TOKENS = 6
STREAMS = 8
GATES = ("--gate", "error_rate<3%", "--gate", "tokens_per_second_p50>1.1x")
console = Console()
started = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--out", type=Path, default=Path("demo-ab.html"), help="the report")
    options = parser.parse_args()
    try:
        _run(options.requests, options.out)
    except LoragateError as error:
        console.print(f"[red]demo-ab:[/] {error}")
        return 1
    return 0


def _run(requests: int, out: Path) -> None:
    models = Home.from_environment().ensure().models
    with Progress(console=console) as progress:
        prepare(DEFAULT_MODEL, models, progress)
    with ExitStack() as stack:
        home = Home(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-ab-"))))
        (home.root / "models").symlink_to(models)
        os.environ |= {
            "LORAGATE_HOME": str(home.ensure().root),
            "LORAGATE_MERGED_KV_CACHE_GIB": "0.5",
        }
        key = _publish(home)
        url = stack.enter_context(own_server(home))
        _done("served")
        os.environ |= {"LORAGATE_URL": url, "LORAGATE_ADMIN_KEY": home.admin_key()}
        _loragate("adapter", "merged", f"{ADAPTER}@v1", "--wait")
        _done("served merged too, by an engine of its own")
        arms = ("--arm", "champion=v1:50%", "--arm", "merged=v1+merged:50%")
        # Each user asks once, so a user is told by one answer.
        _loragate("experiment", "start", str(ADAPTER), *arms, *GATES, "--values", "1")
        answered = asyncio.run(_ask_all(url, key, requests))
        _done(f"answered {requests} requests: {dict(answered)}")
        console.print(_loragate("experiment", "report", str(ADAPTER), "--html", str(out)))
    _done(f"the report is {out}")


def _publish(home: Home) -> str:
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        key = registry.tenants.create(ADAPTER.tenant, actor="demo").key
        version = registry.versions.publish(ADAPTER, FOLDER, "demo")
        registry.aliases.set(ADAPTER, "champion", version.number, "demo")
    return key


async def _ask_all(url: str, key: str, requests: int) -> Counter[str]:
    """How many were answered in each arm and mode."""
    headers = {"authorization": f"Bearer {key}"}
    answered: Counter[str] = Counter()
    numbers = iter(range(requests))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("asking", total=requests)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:

            async def stream() -> None:
                for number in numbers:
                    answered[await _ask(http, number)] += 1
                    progress.advance(task)

            await asyncio.gather(*(stream() for _ in range(STREAMS)))
    return answered


async def _ask(http: httpx.AsyncClient, number: int) -> str:
    body = {
        "model": ADAPTER.name,
        "user": f"user-{number}",  # each is a unit of the experiment
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
    }
    response = await http.post("/v1/chat/completions", json=body)
    if response.is_error:
        raise LoragateError(f"The server answered {response.status_code}: {response.text}")
    arm = response.headers.get("x-loragate-arm", "no arm")
    return f"{arm}, {response.headers['x-loragate-mode']}"


def _loragate(*arguments: str) -> str:
    command: Sequence[str] = (sys.executable, "-m", "loragate.server.cli.main", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoragateError(done.stderr.strip().removeprefix("loragate: "))
    return done.stdout


def _done(what: str) -> None:
    console.print(f"[green]✓[/] {time.monotonic() - started:3.0f} s  {what}")


if __name__ == "__main__":
    sys.exit(main())
