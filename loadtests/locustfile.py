"""What Locust loads: `python -m loadtests run SCENARIO` starts it; so does, with its page,

    locust -f loadtests/locustfile.py --target target.json --scenario steady

where `python -m loadtests prepare` has written `target.json`.
"""

import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

# Locust puts this file's folder on the path; the package is imported from the one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc.experimental.gevent
from gevent.pool import Group
from locust import LoadTestShape, events, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner

from loadtests.actions import stop_server, swap_adapters
from loadtests.current import CurrentRun, Options
from loadtests.judging import judge, read_objectives
from loadtests.plans import Mix
from loadtests.records import read_run
from loadtests.scenarios import SCENARIOS
from loadtests.surroundings import describe_machine
from loadtests.target import Target
from loadtests.users import GrpcStreams, HttpStreams, StreamUser
from loadtests.watching import watch_client, watch_server

__all__ = ["GrpcStreams", "HttpStreams", "Planned"]

# After Locust has patched the standard library, and before the first channel.
grpc.experimental.gevent.init_gevent()

HERE = Path(__file__).parent
_USERS = (HttpStreams, GrpcStreams)
_BEGIN_SECONDS = 2.0
_beside = Group()  # greenlets that watch and act, for as long as a run lasts


def _tenth_of_milliseconds(response_time: float) -> float:
    """Locust rounds to two digits, so that gaps of 20 and of 20.4 ms would be one."""
    return round(response_time, 1)


stats.bucket_response_time = _tenth_of_milliseconds


class Planned(LoadTestShape):
    """Both users at once, until the plan is done: the load is in the plan, not in user counts."""

    def tick(self) -> tuple[int, float] | None:
        if self.runner is None:
            return None
        run = StreamUser.run_under_way
        # The first tick makes Locust begin; a run that could not be made is over soon after.
        is_over = run.is_over if run is not None else self.get_run_time() > _BEGIN_SECONDS
        users = len(self.runner.environment.user_classes)
        return None if is_over else (users, users)


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("loragate's load tests")
    add = group.add_argument
    add("--target", default="target.json", help="who is asked, and with which keys")
    add("--scenario", choices=[*SCENARIOS], default="steady", help="what is done")
    add("--rate", type=float, default=1.0, help="requests a second; scenarios multiply it")
    add("--duration", type=float, default=0.0, help="seconds; 0: the scenario's own")
    add("--seed", type=int, default=0, help="of all that is drawn")
    add("--prompt-words", default="8,24,96", help="lengths of prompts")
    add("--output-tokens", default="16,32,64", help="lengths of answers")
    add("--request-timeout", type=float, default=120.0, help="seconds until one is given up")
    add("--objectives", default=str(HERE / "objectives.toml"), help="when it passes")
    add("--run-file", default="", help="where samples go, by default a new file here")


@events.init.add_listener
def _look_ahead(environment: Environment, **_: object) -> None:
    """Refuses what cannot work, and tells the page who is asked."""
    if not isinstance(environment.runner, LocalRunner):
        raise SystemExit("One process makes the whole plan: leave out --processes and workers.")
    if environment.parsed_options is not None:
        environment.host = Target.load(Path(environment.parsed_options.target)).http


@events.test_start.add_listener
def _begin(environment: Environment, **_: object) -> None:
    arguments = environment.parsed_options
    if arguments is None or environment.runner is None:
        raise RuntimeError("Locust was started without its command line.")
    named = arguments.run_file or f"{arguments.scenario}-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
    run = CurrentRun(_options(arguments, environment), Path(named))
    StreamUser.run_under_way = run
    for beside in (watch_client, watch_server):
        _beside.spawn(beside, run)
    if run.options.scenario.swap_every_seconds:
        _beside.spawn(swap_adapters, run)
    if run.options.scenario.stops_server:
        _beside.spawn(stop_server, run)


@events.test_stop.add_listener
def _end(environment: Environment, **_: object) -> None:
    run = StreamUser.run_under_way
    if run is None:
        return
    StreamUser.run_under_way = None
    _beside.kill()
    run.close()
    verdict = judge(read_run(run.path))
    environment.process_exit_code = verdict.exit_code


def _options(arguments: Namespace, environment: Environment) -> Options:
    scenario = SCENARIOS[arguments.scenario]
    chosen = {user.__name__ for user in environment.user_classes}
    return Options(
        scenario=scenario,
        target=Target.load(Path(arguments.target)),
        mix=Mix(
            prompt_words=_numbers(arguments.prompt_words),
            output_tokens=_numbers(arguments.output_tokens),
            skew=scenario.skew,
            base_share=scenario.base_share,
            protocols=tuple(user.protocol for user in _USERS if user.__name__ in chosen),
        ),
        rate=arguments.rate,
        duration_seconds=arguments.duration or scenario.duration_seconds,
        seed=arguments.seed,
        request_timeout_seconds=arguments.request_timeout,
        objectives=read_objectives(Path(arguments.objectives), scenario.name),
        environment=describe_machine(),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
