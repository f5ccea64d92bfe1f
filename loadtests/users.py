"""Locust's users: one for each protocol, which makes all requests of the plan that are its own.

A user is no client that asks, waits and asks again: each request has a greenlet of its own, begun
when the plan says so, however many others still wait for their answers.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import gevent
from gevent.pool import Group
from locust import User, task
from locust.exception import StopUser

from loadtests.current import CurrentRun
from loadtests.entries import Entries
from loadtests.grpc_client import GrpcClient
from loadtests.http_client import HttpClient
from loadtests.plans import Ask, Timed
from loadtests.records import Sample
from loadtests.target import Protocol as ProtocolName


class Client(Protocol):
    """Makes one request and says what came of it; never raises for what the server did."""

    def ask(self, ask: Ask, origin: float) -> Sample: ...

    def close(self) -> None: ...


class StreamUser(User):
    """Works through the plan once, then stops."""

    abstract = True
    fixed_count = 1
    protocol: ClassVar[ProtocolName]
    # Locust makes users itself; what they share can only be handed to their class.
    run_under_way: ClassVar[CurrentRun | None] = None

    def make_client(self, run: CurrentRun) -> Client:
        raise NotImplementedError

    @task
    def work_through_plan(self) -> None:
        run = StreamUser.run_under_way
        if run is None or self.protocol not in run.options.mix.protocols:
            raise StopUser
        entries = Entries(self.environment, run.options.objectives)
        client = self.make_client(run)
        under_way = Group()

        def make(ask: Ask) -> None:
            sent = run.now
            try:
                sample = client.ask(ask, run.origin)
            except gevent.GreenletExit:
                sample = _cut(ask, sent, run.now)
            run.recorder.write(sample)
            entries.add(sample)

        def follow(timed: Timed) -> None:
            asks = run.plan.successive(timed, self.protocol)
            for _ in range(run.plan.streams_of(timed, self.protocol)):
                under_way.spawn(_one_after_another, run, timed, asks, make)
            for ask in run.plan.arrivals(timed):
                if ask.protocol == self.protocol and ask.at is not None:
                    gevent.sleep(max(0.0, ask.at - run.now))
                    under_way.spawn(make, ask)
            gevent.sleep(max(0.0, timed.ends - run.now))

        try:
            for timed in run.plan.phases:
                follow(timed)
            under_way.join(timeout=run.options.request_timeout_seconds)
            run.finish(self.protocol)
        finally:
            under_way.kill()
            client.close()
        raise StopUser


def _one_after_another(
    run: CurrentRun, timed: Timed, asks: Iterator[Ask], make: Callable[[Ask], None]
) -> None:
    while run.now < timed.ends:
        make(next(asks))


def _cut(ask: Ask, sent: float, ended: float) -> Sample:
    return Sample(
        index=ask.index,
        phase=ask.phase,
        protocol=ask.protocol,
        tenant=ask.tenant,
        adapter=ask.adapter,
        label=ask.label,
        client=ask.client,
        intended=sent if ask.at is None else ask.at,
        sent=sent,
        ended=ended,
        outcome="cut",
    )


class HttpStreams(StreamUser):
    """Server-sent events over HTTP."""

    protocol = "http"

    def make_client(self, run: CurrentRun) -> Client:
        return HttpClient(run.options.target, run.options.request_timeout_seconds)


class GrpcStreams(StreamUser):
    """Server streams over gRPC."""

    protocol = "grpc"

    def make_client(self, run: CurrentRun) -> Client:
        return GrpcClient(run.options.target, run.options.request_timeout_seconds)
