"""`loragate rollout` and `loragate experiment`, on this machine's registry and on a server's."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import write_adapter
from support.registry.promotions import let_serve
from support.server.admin_app import ADMIN_KEY, build_app, listening
from support.server.command_line import give_registry, move_to, running

SUPPORT = AdapterName("acme", "support")
START = "rollout start acme/support --to v2 --steps 1,50% --every 10m --gate 'error_rate<1%'"
COMPARE = (
    "experiment start acme/support --arm champion=v1:50% --arm new=v2:50% --gate 'thumbs>=champion'"
)
Loragate = Callable[..., str]


@pytest.fixture
def registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path
) -> Iterator[Registry]:
    """acme/support has a champion v1, and v2."""
    home = move_to(tmp_path, monkeypatch)
    give_registry(home, empty_registry)
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as opened:
        opened.tenants.create("acme")
        for number in (1, 2):
            opened.versions.publish(SUPPORT, write_adapter(tmp_path / f"v{number}", number))
        let_serve(opened, SUPPORT, "champion", 1)
        yield opened


@pytest.fixture(params=["local", "remote"])
def loragate(
    request: pytest.FixtureRequest, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> Iterator[Loragate]:
    """Runs a command and returns what it printed; `code` is how it is to end."""

    def run(command: str, *more: str, code: int = 0) -> str:
        result = running(capsys)(command, *more)
        assert result.code == code, result.err
        return result.err if code else result.out

    if request.param == "local":
        yield run
        return
    with listening(build_app(registry)) as url:
        yield lambda command, *more, code=0: run(
            command, *more, "--url", url, "--key", ADMIN_KEY, code=code
        )


def test_rollout_is_begun_paused_resumed_and_ended(loragate: Loragate, registry: Registry) -> None:
    begun: dict[str, Any] = json.loads(loragate(START, "--json"))
    assert (begun["state"], begun["steps"]) == ("RUNNING", [0.01, 0.5])
    assert [(arm["name"], arm["answers"], arm["share"]) for arm in begun["arms"]] == [
        ("challenger", "acme/support@v2", 0.01),
        ("champion", "acme/support@v1", 0.99),
    ]
    assert "PAUSED" in loragate("rollout pause acme/support --reason lunch")
    assert "lunch" in loragate("rollout list acme")
    assert "RUNNING" in loragate("rollout resume acme/support")
    assert "ABORTED" in loragate("rollout abort acme/support")
    assert "cannot be paused" in loragate("rollout pause acme/support", code=1)
    actions = [row.action for row in registry.audit.list("acme/support", 4)]
    assert actions == ["rollout.aborted", "rollout.running", "rollout.paused", "rollout.start"]


def test_status_shows_arms_and_what_is_missing(loragate: Loragate, tmp_path: Path) -> None:
    loragate(START)
    shown = loragate("rollout status acme/support", "--html", str(tmp_path / "page.html"))
    assert "challenger" in shown
    assert "there is no error_rate of challenger yet" in shown
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    report = json.loads(loragate("rollout status acme/support --json"))
    assert [verdict["decision"] for verdict in report["verdicts"]] == ["INCONCLUSIVE"]
    assert report["verdicts"][0]["gates"][0]["estimate"] is None


def test_experiment_is_decided_by_hand_but_not_before_its_time_by_its_verdict(
    loragate: Loragate, registry: Registry
) -> None:
    loragate(COMPARE)
    assert "too early" in loragate("experiment decide acme/support --auto", code=1)
    assert "PASSED" in loragate("experiment decide acme/support --promote new")
    assert registry.versions.show(SUPPORT).aliases["champion"].desired.number == 2
    assert "experiment" in json.loads(loragate("experiment list --json"))[0]["kind"]


def test_experiment_is_stopped_by_its_own_command_alone(loragate: Loragate) -> None:
    loragate(COMPARE)
    assert "no rollout" in loragate("rollout abort acme/support", code=1)
    assert "ABORTED" in loragate("experiment stop acme/support")


def test_experiment_that_is_rolled_back_leaves_the_champion(
    loragate: Loragate, registry: Registry
) -> None:
    loragate(COMPARE)
    assert "ROLLED_BACK" in loragate("experiment decide acme/support --rollback")
    assert registry.versions.show(SUPPORT).aliases["champion"].desired.number == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("rollout start acme/support --to v9", "v9"),
        ("rollout start acme/support --to v1", "champion already"),
        ("rollout start acme/support --to v2 --steps 50,10", "larger than the one before"),
        ("rollout start acme/support --to v2 --gate 'speed>1'", "there is no metric 'speed'"),
        ("rollout start acme/support --to v2 --merged", "no engine serves acme/support@v2 merged"),
        ("rollout status acme/support", "no rollout or experiment of acme/support"),
        (
            "experiment start acme/support --arm champion=v1:5% --arm new=v2:40% --gate thumbs>=4%",
            "add up to 0.45",
        ),
        ("experiment start acme/support --arm champion=v1 --arm new=v2", "needs a question"),
        (
            "experiment start acme/support --arm champion=v1 --arm new=v2+merged --gate thumbs>=4%",
            "no engine serves",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    loragate: Loragate, command: str, problem: str
) -> None:
    assert problem in loragate(command, code=1)


def test_version_in_a_rollout_cannot_be_retired(loragate: Loragate) -> None:
    loragate(START)
    assert "rollout 1" in loragate("adapter retire acme/support v2", code=1)
    assert "rollout 1" in loragate(START, code=1)


def test_wrong_time_or_choice_is_wrong_usage(loragate: Loragate) -> None:
    loragate("rollout start acme/support --to v2 --every 10", code=2)
    loragate("experiment decide acme/support", code=2)
