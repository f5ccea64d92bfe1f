"""One request made to cost much is refused, and while it runs others are answered."""

import asyncio
from dataclasses import replace
from pathlib import Path

from bench.bombs import BOMBS, Target, throw, watching
from loragate.adapters.base_models.preparation import BaseModel
from loragate.server.config import ServerConfig
from support.engines.echo_engine import TINY_MODEL, EchoEngine  # pyright: ignore[reportMissingImports]
from support.server.small_server import (  # pyright: ignore[reportMissingImports]
    furnish,
    serve,
    small_config,
)

SIZE = 700_000
# Far above what any takes, on the slowest machine: unbounded, most take as long as the test has.
MOST_SECONDS = 2.0


async def test_no_request_that_is_made_to_cost_much_holds_the_others_up(
    tmp_path: Path, tiny_model: Path
) -> None:
    furnished = furnish(tmp_path / "furnished")
    base = BaseModel("tiny", tiny_model, "sha256:0")
    config = small_config(server=ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0"))
    engine = EchoEngine(replace(TINY_MODEL, max_model_len=4096, max_logprobs=20))
    answered: dict[str, str] = {}
    late: dict[str, float] = {}
    async with (
        serve(furnished, tmp_path / "served", base, engine, config) as served,
        served.server.listening(),
    ):
        server, key = served.server, furnished.keys["acme"]
        target = Target("127.0.0.1", server.http_port, server.grpc_port, key)
        for bomb in BOMBS:
            payload = await asyncio.to_thread(bomb.make, SIZE)
            async with watching(target) as watch:
                status = await throw(bomb, target, payload, SIZE)
            if status not in bomb.answers:
                answered[bomb.name] = status
            if watch.worst > MOST_SECONDS:
                late[bomb.name] = watch.worst
            assert server.admission.in_flight == 0, bomb.name
    assert answered == {}
    assert late == {}
