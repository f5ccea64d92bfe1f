"""The command line on a real registry: in LORAGATE_HOME, and behind a real server's `/admin/v1`."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.main import get_command

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.api_keys import hash_key
from loragate.adapters.registry.merged_states import MergedState
from loragate.adapters.registry.registry import AdapterState, Registry, UsageRow
from loragate.adapters.store import ArtifactStore
from loragate.server.cli.main import build
from support.models.one_layer import write_adapter
from support.registry.promotions import let_serve, make_ready
from support.server.admin_app import ADMIN_KEY, build_app, listening
from support.server.command_line import Loragate, Result, give_registry, move_to, running

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return move_to(tmp_path, monkeypatch)


@pytest.fixture
def registry(home: Home, empty_registry: Path) -> Iterator[Registry]:
    give_registry(home, empty_registry)
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as opened:
        yield opened


@pytest.fixture
def local(home: Home, capsys: pytest.CaptureFixture[str]) -> Loragate:
    return running(capsys)


@pytest.fixture(params=["local", "remote"])
def loragate(
    request: pytest.FixtureRequest, local: Loragate, registry: Registry
) -> Iterator[Loragate]:
    """Runs a command on the registry of LORAGATE_HOME, or on a server of the same registry."""
    if request.param == "local":
        yield local
        return
    with listening(build_app(registry)) as url:
        yield lambda command, *more: local(command, *more, "--url", url, "--key", ADMIN_KEY)


def test_created_tenant_gets_a_key_that_works(loragate: Loragate, registry: Registry) -> None:
    result = loragate("tenant create acme --json")

    assert result.code == 0
    made = result.json
    assert isinstance(made, dict)
    assert set(made) == {"tenant", "key"}
    assert made["tenant"] == "acme"
    assert registry.snapshot().tenant_of_key(hash_key(made["key"])) == "acme"


def test_key_of_a_new_tenant_is_shown_once_to_people_too(
    loragate: Loragate, registry: Registry
) -> None:
    shown = loragate("tenant create acme").out
    keys = [word for word in shown.split() if word.startswith("lg-")]

    assert [registry.snapshot().tenant_of_key(hash_key(key)) for key in keys] == ["acme"]
    assert keys[0] not in loragate("key list acme").out


def test_limits_change_one_by_one_and_are_forgotten_on_reset(
    loragate: Loragate, registry: Registry
) -> None:
    loragate("tenant create acme --requests-per-minute 60 --max-concurrent 4")
    loragate("tenant limit acme --tokens-per-minute 1000")
    [tenant] = registry.tenants.list()
    assert (
        tenant.limits.requests_per_minute,
        tenant.limits.tokens_per_minute,
        tenant.limits.max_concurrent,
    ) == (60, 1000, 4)

    result = loragate("tenant limit acme --reset --max-concurrent 2 --json")

    assert result.json == {
        "tenant": "acme",
        "limits": {"requests_per_minute": None, "tokens_per_minute": None, "max_concurrent": 2},
        "created_at": tenant.created_at.isoformat().replace("+00:00", "Z"),
    }
    listed = loragate("tenant list --json").json
    assert listed == [result.json]


def test_revoked_key_stops_working(loragate: Loragate, registry: Registry) -> None:
    loragate("tenant create acme")
    made = loragate("key create acme --name billing --json").json
    assert isinstance(made, dict)
    assert set(made) == {"key"}
    key_id = "-".join(made["key"].split("-")[:2])
    assert "billing" in loragate("key list acme").out

    assert loragate(f"key revoke {key_id}").code == 0

    assert registry.snapshot().tenant_of_key(hash_key(made["key"])) is None


def test_deleted_tenant_is_gone(loragate: Loragate, registry: Registry) -> None:
    loragate("tenant create acme")

    assert loragate("tenant delete acme --yes --json").json == {"tenant": "acme", "deleted": True}

    assert registry.tenants.list() == ()
    assert "No tenants yet" in loragate("tenant list").out


def test_adapter_is_published_promoted_and_rolled_back(
    loragate: Loragate, registry: Registry, tmp_path: Path
) -> None:
    loragate("tenant create acme")
    one, two = (str(write_adapter(tmp_path / name, seed)) for seed, name in enumerate("ab"))

    first = loragate("adapter publish acme/support --json", one).json
    assert isinstance(first, dict)
    assert first == {"adapter": "acme/support", "version": "v1", "digest": first["digest"]}
    assert loragate("adapter promote acme/support v1").code == 0
    published = loragate("adapter publish acme/support --promote", two)
    assert published.code == 0
    assert "will serve as acme/support as soon as a server has loaded" in published.out
    [target] = registry.snapshot().desired_aliases()
    assert (target.desired.number, target.serving) == (2, None)

    assert loragate("adapter rollback acme/support --json").json == first

    [target] = registry.snapshot().desired_aliases()
    assert target.desired.number == 1


@pytest.fixture
def three_versions(registry: Registry, tmp_path: Path) -> Registry:
    """v1 serves as champion."""
    registry.tenants.create("acme")
    for seed in (1, 2, 3):
        registry.versions.publish(SUPPORT, write_adapter(tmp_path / f"v{seed}", seed))
    let_serve(registry, SUPPORT, "champion", 1)
    return registry


def test_promote_waits_until_the_version_serves(
    loragate: Loragate, three_versions: Registry
) -> None:
    made_ready = threading.Thread(target=serve_next, args=[three_versions])
    made_ready.start()

    result = loragate("adapter promote acme/support v2 --wait --timeout 30")
    made_ready.join()

    assert (result.code, result.err) == (0, "")
    assert "It serves as acme/support." in result.out
    assert three_versions.snapshot().resolve("acme", "support", "champion").number == 2


def serve_next(registry: Registry) -> None:
    """What a server does once the champion is to be another."""
    while True:
        [target] = registry.snapshot().desired_aliases()
        if target.desired != target.serving:
            break
    make_ready(registry, target.desired)
    registry.aliases.set_serving(SUPPORT, "champion", target.desired.number, "server")


@pytest.mark.parametrize(
    ("becomes", "sentence"),
    [
        ("it fails", "acme/support@v2 cannot serve: it has no effect\n"),
        ("another is promoted", "acme/support@v2 was overtaken: champion is to point to v3 by now"),
    ],
)
def test_promote_that_waits_in_vain_says_why_in_one_line(
    loragate: Loragate, three_versions: Registry, becomes: str, sentence: str
) -> None:
    def thwart() -> None:
        while True:
            [target] = three_versions.snapshot().desired_aliases()
            if target.desired.number == 2:
                break
        if becomes == "it fails":
            three_versions.states.set(target.desired, AdapterState.LOADING, "server")
            three_versions.states.set(
                target.desired, AdapterState.FAILED, "server", "it has no effect"
            )
        else:
            three_versions.aliases.set(SUPPORT, "champion", 3)

    thwarted = threading.Thread(target=thwart)
    thwarted.start()
    result = loragate("adapter promote acme/support v2 --wait --timeout 30")
    thwarted.join()

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("loragate: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_promote_that_no_server_takes_up_ends_in_time(
    loragate: Loragate, three_versions: Registry
) -> None:
    result = loragate("adapter promote acme/support v2 --wait --timeout 0")

    assert result.code == 1
    assert "start one with `loragate serve`" in result.err
    assert result.err.count("\n") == 1


def test_show_tells_what_comes_what_failed_and_what_drains(
    loragate: Loragate, three_versions: Registry
) -> None:
    serving = three_versions.aliases.set(SUPPORT, "challenger", 3)
    make_ready(three_versions, serving)
    three_versions.aliases.set_serving(SUPPORT, "challenger", 3, "server")
    two = three_versions.aliases.set(SUPPORT, "champion", 2)
    three_versions.states.set(two, AdapterState.LOADING, "server")

    loading = loragate("adapter show acme/support").out
    assert "acme/support: v1 serves (its champion)." in loading
    assert "v2 is being loaded and checked, and serves after that (as champion)." in loading

    three_versions.states.set(two, AdapterState.FAILED, "server", "it has no effect")
    failed = loragate("adapter show acme/support").out
    assert "acme/support: v1 serves (its champion)." in failed
    assert "v2 was to serve as champion and failed: it has no effect." in failed
    [row] = [line for line in failed.splitlines() if line.split()[:2] == ["v2", "FAILED"]]
    assert "it has no effect" in row
    assert any("LOADING" in line and "FAILED" in line for line in failed.splitlines())

    three_versions.aliases.set(SUPPORT, "champion", 3)
    three_versions.aliases.set_serving(SUPPORT, "champion", 3, "server")
    one = three_versions.snapshot().resolve("acme", "support", "v1")
    three_versions.states.set(one, AdapterState.DRAINING, "server", "v3 serves")
    draining = loragate("adapter show acme/support").out
    assert "acme/support: v3 serves (its champion)." in draining
    assert "v1 is draining: its last requests are ending." in draining
    assert "v2 failed: it has no effect." in draining

    page = loragate("adapter show acme/support --json").json
    assert isinstance(page, dict)
    assert page["aliases"] == page["serving"] == {"champion": "v3", "challenger": "v3"}
    assert [(one["version"], one["state"], one["reason"]) for one in page["versions"]] == [
        ("v3", "READY", ""),
        ("v2", "FAILED", "it has no effect"),
        ("v1", "DRAINING", "v3 serves"),
    ]


def test_show_tells_why_a_version_failed_once_and_its_code_in_the_tables(
    loragate: Loragate, three_versions: Registry
) -> None:
    two = three_versions.aliases.set(SUPPORT, "champion", 2)
    three_versions.states.set(two, AdapterState.LOADING, "server")
    sentence = "In the engine this adapter is not what was trained."
    three_versions.states.set(two, AdapterState.FAILED, "server", f"reference_mismatch: {sentence}")

    shown = loragate("adapter show acme/support").out

    assert f"v2 was to serve as champion and failed (reference_mismatch): {sentence}" in shown
    assert shown.count(sentence) == 1
    rows = [line for line in shown.splitlines() if line.rstrip().endswith("reference_mismatch")]
    assert ["FAILED" in row for row in rows] == [True, True]


def test_show_tells_what_a_server_cannot_load_and_that_it_comes_again(
    loragate: Loragate, three_versions: Registry
) -> None:
    two = three_versions.aliases.set(SUPPORT, "champion", 2)
    three_versions.states.say_not_loaded(two, "not_loaded: its files are missing here", "server")

    shown = loragate("adapter show acme/support").out

    assert "v2 is not loaded: its files are missing here." in shown
    assert "tries again by itself" in shown


def test_version_in_the_engine_is_retired_when_it_leaves_it(
    loragate: Loragate, three_versions: Registry
) -> None:
    two = make_ready(three_versions, three_versions.snapshot().resolve("acme", "support", "v2"))

    asked = loragate("adapter retire acme/support v2 --json")
    assert asked.json == {"adapter": "acme/support", "version": "v2", "state": "READY"}
    assert "READY (retiring)" in loragate("adapter show acme/support").out

    three_versions.states.set(two, AdapterState.DRAINING, "server")
    three_versions.states.set(two, AdapterState.PUBLISHED, "server")
    again = loragate("adapter retire acme/support v2 --json")
    assert again.json == {"adapter": "acme/support", "version": "v2", "state": "RETIRED"}


def test_pin_is_shown_with_what_a_server_says_of_it(
    loragate: Loragate, three_versions: Registry
) -> None:
    assert "Pinned acme/support@v2" in loragate("adapter pin acme/support@v2").out
    assert "v2 is pinned: a server keeps it loaded." in loragate("adapter show acme/support").out

    two = three_versions.snapshot().resolve("acme", "support", "v2")
    three_versions.pins.refuse(two, "this server has no room for it", "server")
    shown = loragate("adapter show acme/support").out
    assert "v2 is pinned, but not kept: this server has no room for it." in shown

    unpinned = loragate("adapter unpin acme/support@v2 --json").json
    assert isinstance(unpinned, dict)
    assert unpinned["version"] == "v2"
    assert "pinned" not in loragate("adapter show acme/support").out.split("version.pin")[0]


def test_merged_model_is_served_routed_to_and_shown_with_what_a_server_says(
    loragate: Loragate, three_versions: Registry
) -> None:
    refused = loragate("adapter route acme/support merged")
    assert refused.code == 1
    assert "loragate merge acme/support@v1 --serve" in refused.err

    assert "is to be served merged" in loragate("adapter merged acme/support@v1").out
    assert "go to v1 merged" in loragate("adapter route acme/support merged").out
    shown = loragate("adapter show acme/support").out
    assert "v1 is to be served merged for champion; that is WAITING." in shown

    one = three_versions.snapshot().resolve("acme", "support", "v1")
    three_versions.merged.set_state(one, MergedState.SERVING, "server")
    assert "is served merged" in loragate("adapter merged acme/support@v1 --wait").out
    three_versions.merged.set_state(one, MergedState.REFUSED, "server", "there is no room")
    shown = loragate("adapter show acme/support").out
    assert "v1 is to be served merged for champion, but that is REFUSED: there is no room." in shown

    loragate("adapter promote acme/support v1")
    assert "Stopped" in loragate("adapter merged acme/support@v1 --stop").out
    assert "merged" not in loragate("adapter show acme/support").out.split("version.")[0]


def test_only_the_files_of_retired_versions_are_collected(
    loragate: Loragate, three_versions: Registry, home: Home
) -> None:
    assert "Nothing to remove" in loragate("adapter collect").out
    retired = three_versions.states.retire(SUPPORT, 2)
    assert "Would remove" in loragate("adapter collect --dry-run").out
    assert loragate("adapter collect --dry-run --json").json == {"collected": [retired.digest]}

    assert loragate("adapter collect --json").json == {"collected": [retired.digest]}

    kept = {version.digest for version in three_versions.snapshot().versions()}
    assert {folder.name for folder in home.artifacts.iterdir()} == kept
    assert loragate("adapter collect --json").json == {"collected": []}


def test_show_tells_a_newcomer_what_serves(
    loragate: Loragate, registry: Registry, tmp_path: Path
) -> None:
    loragate("tenant create acme")
    for seed, name in enumerate("ab"):
        loragate("adapter publish acme/support", str(write_adapter(tmp_path / name, seed, rank=4)))
    assert "no version serves yet" in loragate("adapter show acme/support").out
    loragate('adapter promote acme/support v1 --reason "passed the evaluation"')
    loragate("adapter alias acme/support challenger v2")
    assert "v1 will serve as soon as a server" in loragate("adapter show acme/support").out
    let_serve(registry, SUPPORT, "champion", 1)

    shown = loragate("adapter show acme/support").out

    assert "acme/support: v1 serves (its champion)." in shown
    page = loragate("adapter show acme/support --json").json
    assert isinstance(page, dict)
    for version in page["versions"]:
        row = next(line for line in shown.splitlines() if version["digest"][:12] in line)
        assert f"{version['version']} " in row
        assert ("READY" if version["version"] == "v1" else "PUBLISHED") in row
        assert version["aliases"][0] in row
        assert " 4 " in row
    [change] = [line for line in shown.splitlines() if "passed the evaluation" in line]
    assert "champion" in change
    listed = loragate("adapter list acme").out
    assert "challenger → v2" in listed


def test_retired_version_cannot_be_promoted(loragate: Loragate, tmp_path: Path) -> None:
    loragate("tenant create acme")
    loragate("adapter publish acme/support", str(write_adapter(tmp_path / "a")))
    loragate("adapter alias acme/support challenger v1")

    in_use = loragate("adapter retire acme/support v1")
    assert (in_use.code, "challenger" in in_use.err) == (1, True)
    assert loragate("adapter alias acme/support challenger --delete").code == 0
    assert loragate("adapter retire acme/support v1").code == 0

    refused = loragate("adapter promote acme/support v1")
    assert refused.code == 1
    assert "is retired" in refused.err


def test_usage_is_summed_up_since_a_time(loragate: Loragate, registry: Registry) -> None:
    registry.usage.add(
        [
            UsageRow("r1", datetime.now(UTC), "acme", "base", "", "http", 10, 5, 2, 0.1, 0.5, "ok"),
            UsageRow("r2", datetime.now(UTC), "acme", "base", "", "grpc", 20, 7, 0, 0.1, 0.5, "ok"),
            UsageRow(
                "r3",
                datetime(2026, 1, 1, tzinfo=UTC),
                "acme",
                "base",
                "",
                "http",
                1,
                1,
                0,
                0,
                0,
                "ok",
            ),
        ]
    )

    assert loragate("usage acme --since 1h --json").json == [
        {
            "tenant": "acme",
            "adapter": "base",
            "requests": 2,
            "prompt_tokens": 30,
            "completion_tokens": 12,
            "cached_tokens": 2,
        }
    ]
    assert "31" in loragate("usage --since 2025-12-31").out
    assert loragate("usage globex").out == "No requests were served in this time.\n"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("tenant create Acme", "'Acme' is not a valid tenant name"),
        ("tenant limit globex --max-concurrent 1", "there is no tenant 'globex'"),
        ("key create globex", "there is no tenant 'globex'"),
        ("key revoke lg-nobody22", "there is no API key 'lg-nobody22'"),
        ("adapter show acme/support", "there is no adapter 'acme/support'"),
        ("adapter show support", "'support' is not a valid adapter name"),
        ("adapter promote acme/support 3", "'3' is not a valid version name"),
        ("adapter publish acme/support ./nowhere", "there is no nowhere; give a folder"),
        ("adapter publish acme/base .", "reserved for the base model"),
    ],
)
def test_failure_is_one_line_on_stderr_and_exit_1(
    loragate: Loragate, registry: Registry, command: str, sentence: str
) -> None:
    registry.tenants.create("acme")

    result = loragate(command)

    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("loragate: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        "tenant",
        "tenant create",
        "tenant frobnicate acme",
        "tenant create acme --colour red",
        "tenant limit acme",
        "tenant limit acme --max-concurrent 0",
        "adapter alias acme/support challenger",
        "adapter alias acme/support challenger v1 --delete",
        "usage --since yesterday",
        "chat acme/support --json",
    ],
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(local: Loragate, command: str) -> None:
    result = local(command)

    assert result.code == 2
    assert "Usage: loragate" in result.err + result.out
    assert "Traceback" not in result.err


def test_remote_server_needs_the_admin_key(
    local: Loragate, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(build_app(registry)) as url:
        monkeypatch.setenv("LORAGATE_URL", url)
        missing = local("tenant list")
        wrong = local("tenant list --key wrong")
        of_tenant = local("tenant list", "--key", registry.tenants.create("acme").key)
        monkeypatch.setenv("LORAGATE_ADMIN_KEY", ADMIN_KEY)
        right = local("tenant list --json")

    assert (missing.code, "set LORAGATE_ADMIN_KEY or pass --key" in missing.err) == (1, True)
    assert (wrong.code, wrong.err) == (1, "loragate: This is not the admin key.\n")
    assert (of_tenant.code, "A tenant's key opens no administration" in of_tenant.err) == (1, True)
    assert right.code == 0


def test_absent_server_is_told_in_one_sentence(local: Loragate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"

    result = local("tenant list --key x", "--url", url)

    assert result.code == 1
    assert f"No server listens at {url}" in result.err
    assert local("tenant list --key x --url localhost").err.count("is no address of a server") == 1


def test_what_is_kept_no_longer_is_counted_and_then_deleted(
    local: Loragate, registry: Registry, home: Home
) -> None:
    registry.tenants.create("acme")
    rows = [
        UsageRow(
            f"req-{days}",
            datetime.now(UTC) - timedelta(days=days),
            "acme",
            "acme/support@v1",
            "digest",
            "http",
            10,
            5,
            2,
            0.1,
            1.0,
            "ok",
            f"row-{days}",
        )
        for days in (1, 8, 100)
    ]
    registry.usage.add(rows)
    before = local("usage --json").json
    Path("week.toml").write_text("[retention]\nusage_days = 7\n")

    counted = local("registry prune --dry-run --json").json
    counted_by_file = local("registry prune --dry-run --config week.toml")
    assert (counted, len(registry.usage.list())) == (_pruned(1, is_dry=True), 3)
    assert "usage_days = 7" in counted_by_file.out
    assert "Nothing was deleted. To delete them: loragate registry prune" in counted_by_file.out

    assert local("registry prune --json").json == _pruned(1)
    assert "Deleted 1 rows" in local("registry prune --config week.toml").out
    assert "Nothing is older" in local("registry prune --config week.toml").out
    assert [row.request_id for row in registry.usage.list()] == ["req-1"]
    assert local("usage --json").json == before


def _pruned(usage: int, *, is_dry: bool = False) -> object:
    none = dict.fromkeys(("exposures", "outcomes", "shadows", "feedback", "usage", "audit"), 0)
    return {"dry_run": is_dry, "rows": none | {"usage": usage}}


def commands() -> Iterator[str]:
    """Every command and every group, by its full name."""

    def walk(command: object, name: str) -> Iterator[str]:
        yield name
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{name} {child}")

    yield from walk(get_command(build()), "loragate")


@pytest.mark.parametrize("command", list(commands()))
def test_help_of_every_command_says_what_it_does_and_has_an_example(
    local: Loragate, command: str
) -> None:
    help_text = local(command.removeprefix("loragate").strip(), "--help").out

    assert f"$ {command}" in help_text
    summary = help_text.split("\n\n")[1].strip()
    assert summary.endswith(".")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from loragate.server.cli.main import main\n"
        "try:\n    main(['adapter', 'publish', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'vllm', 'sqlalchemy', 'fastapi', 'httpx',"
        " 'grpc', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert ended.stderr == "[]\n"


def test_version_and_completion_are_there(local: Loragate) -> None:
    assert local("--version").out.startswith("loragate ")
    assert "--show-completion" in local("--help").out


def states(result: Result) -> dict[str, tuple[str, str]]:
    assert isinstance(result.json, list)
    return {check["name"]: (check["state"], check["message"]) for check in result.json}


@pytest.fixture
def free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    for transport in ("HTTP", "GRPC"):
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            address = f"127.0.0.1:{reserved.getsockname()[1]}"
        monkeypatch.setenv(f"LORAGATE_SERVER_{transport}", address)


@pytest.mark.usefixtures("free_ports")
def test_doctor_finds_a_missing_model_on_an_empty_machine(local: Loragate, home: Home) -> None:
    result = local("doctor --json")

    found = states(result)
    assert result.code == 1
    assert found["model"][0] == "fail"
    assert "loragate model prepare" in found["model"][1]
    assert {found[name][0] for name in ("python", "home", "database", "http", "grpc")} == {"ok"}
    assert not home.root.exists()


@pytest.mark.usefixtures("free_ports")
def test_doctor_warns_of_an_adapter_that_the_base_model_hides(
    local: Loragate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local("tenant create acme")
    local("adapter publish acme/tiny", str(write_adapter(tmp_path / "a")))
    assert "names" not in states(local("doctor --json"))
    (tmp_path / "tiny").mkdir()
    monkeypatch.setenv("LORAGATE_ENGINE_MODEL", str(tmp_path / "tiny"))

    state, message = states(local("doctor --json"))["names"]

    assert state == "warn"
    assert "reach the base model, not acme/tiny; ask for the adapter as 'TENANT/tiny'" in message


QWEN3 = (
    '{"model_type": "qwen3", "num_hidden_layers": 28, "num_attention_heads": 16,'
    ' "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}'
)


@pytest.mark.usefixtures("free_ports")
def test_doctor_says_which_context_fits_and_refuses_one_that_does_not(
    local: Loragate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(QWEN3)
    monkeypatch.setenv("LORAGATE_ENGINE_MODEL", str(tmp_path / "qwen"))
    state, message = states(local("doctor --json"))["context"]
    assert state == "ok"
    assert "18560 tokens, as many as fit into engine.kv_cache_gib = 2;" in message
    assert "the model was made for 40960, which take 4.39 GiB" in message

    monkeypatch.setenv("LORAGATE_ENGINE_MAX_MODEL_LEN", "40960")
    result = local("doctor --json")
    state, message = states(result)["context"]
    assert (result.code, state) == (1, "fail")
    assert "raise engine.kv_cache_gib to 4.39" in message

    monkeypatch.setenv("LORAGATE_ENGINE_KV_CACHE_GIB", "4.5")
    assert states(local("doctor --json"))["context"][0] == "ok"


@pytest.mark.usefixtures("free_ports")
def test_doctor_measures_memory_as_a_container_has_it(
    local: Loragate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loragate.server.cli.doctor_checks.free_host_bytes", lambda: 2**20)
    state, message = states(local("doctor --json"))["memory"]
    assert state == "warn"
    assert message.startswith("0.00 GiB are free, of ")


@pytest.mark.usefixtures("free_ports")
def test_doctor_refuses_several_gpus_where_the_engine_computes_on_the_cpu(
    local: Loragate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGATE_ENGINE_TENSOR_PARALLEL_SIZE", "2")
    state, message = states(local("doctor --json"))["engine"]
    assert state == "fail"
    assert "engine.tensor_parallel_size is 2" in message


@pytest.mark.usefixtures("free_ports")
def test_doctor_finds_a_damaged_artifact_when_it_looks_deep(
    local: Loragate, home: Home, tmp_path: Path
) -> None:
    local("tenant create acme")
    local("adapter publish acme/support", str(write_adapter(tmp_path / "a")))
    assert states(local("doctor --deep --json"))["store"][0] == "ok"
    [weights] = home.artifacts.glob("*/adapter_model.safetensors")
    weights.chmod(0o600)
    weights.write_bytes(b"x" + weights.read_bytes()[1:])

    assert states(local("doctor --json"))["store"][0] == "ok"
    result = local("doctor --deep")

    assert result.code == 1
    assert any(
        line.startswith("fail  store") and "is damaged" in line for line in result.out.splitlines()
    )


def test_doctor_finds_a_port_that_is_taken(
    local: Loragate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("LORAGATE_SERVER_GRPC", f"127.0.0.1:{taken.getsockname()[1]}")
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            monkeypatch.setenv("LORAGATE_SERVER_HTTP", f"127.0.0.1:{reserved.getsockname()[1]}")
        found = states(local("doctor --json"))

    assert found["grpc"][0] == "fail"
    assert "--grpc" in found["grpc"][1]
    assert found["http"][0] == "ok"


def test_doctor_warns_of_a_home_open_to_others(local: Loragate, home: Home) -> None:
    home.ensure()
    home.root.chmod(0o755)

    state, message = states(local("doctor --json"))["home"]

    assert state == "warn"
    assert f"chmod 700 {home.root}" in message


def test_setting_that_nobody_reads_is_refused_by_name(
    local: Loragate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGATE_SERVER_HTPP", "x")

    result = local("doctor")

    assert result.code == 1
    assert "unknown setting 'htpp' in [server]" in result.err
