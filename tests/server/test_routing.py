import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.adapters.store import ArtifactStore
from loragate.server.errors import ModelNotFound
from loragate.server.gateway.routing import Router, shadowed_adapters_warning
from support.models.one_layer import write_adapter
from support.registry.promotions import let_serve

SUPPORT, DRAFT = AdapterName("acme", "support"), AdapterName("acme", "draft")
STARTED_AT = 1_700_000_000


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """acme: support v1 (retired), v2 (champion), v3 (canary); draft v1, which has no champion.
    globex: router v1 (champion).
    """
    tmp_path = tmp_path_factory.mktemp("routing")
    home = Home(tmp_path / "home").ensure()
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
        registry.tenants.create("globex")
        for seed in (1, 2, 3):
            registry.versions.publish(SUPPORT, write_adapter(tmp_path / f"support-{seed}", seed))
        let_serve(registry, SUPPORT, "champion", 2)
        let_serve(registry, SUPPORT, "canary", 3)
        registry.states.retire(SUPPORT, 1)
        registry.versions.publish(DRAFT, write_adapter(tmp_path / "draft", 4))
        theirs = AdapterName("globex", "router")
        registry.versions.publish(theirs, write_adapter(tmp_path / "router", 5))
        let_serve(registry, theirs, "champion", 1)
        watcher = SnapshotWatcher(registry)
        asyncio.run(watcher.refresh())
        yield Router(watcher, "tiny", 256, STARTED_AT)


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("support", "acme/support@v2"),
        ("support@champion", "acme/support@v2"),
        ("support@canary", "acme/support@v3"),
        ("support@v3", "acme/support@v3"),
        ("acme/support", "acme/support@v2"),
        ("acme/support@v3", "acme/support@v3"),
        ("draft@v1", "acme/draft@v1"),
        ("base", "base"),
        ("tiny", "base"),
    ],
)
def test_a_model_s_name_says_which_weights_answer(router: Router, model: str, adapter: str) -> None:
    route = router.route("acme", model)
    assert route.tenant == "acme"
    assert route.adapter == adapter
    assert len(route.digest) == (0 if adapter == "base" else 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing", "'nothing' does not exist"),
        ("draft", "has no champion yet"),
        ("support@nobody", "has no alias 'nobody'"),
        ("support@v9", "has no v9"),
        ("support@v1", "is retired"),
        ("", "does not exist"),
        ("@", "does not exist"),
        ("base@v1", "does not exist"),
        ("../support", "does not exist"),
    ],
)
def test_what_is_not_there_is_refused_with_the_reason(
    router: Router, model: str, message: str
) -> None:
    with pytest.raises(ModelNotFound, match=message) as refusal:
        router.route("acme", model)
    assert refusal.value.param == "model"


@pytest.mark.parametrize("selector", ["", "@champion", "@v1", "@v7", "@other"])
@pytest.mark.parametrize("prefix", ["", "globex/"])
def test_another_tenant_s_adapter_looks_just_like_none(
    router: Router, selector: str, prefix: str
) -> None:
    refusals: list[str] = []
    for name in ("router", "nobody"):
        with pytest.raises(ModelNotFound) as refusal:
            router.route("acme", f"{prefix}{name}{selector}")
        refusals.append(str(refusal.value).replace(name, "NAME"))
    assert refusals[0] == refusals[1]


def test_the_list_has_the_base_model_and_every_name_that_a_tenant_can_use(router: Router) -> None:
    cards = router.models("acme")
    assert [card.id for card in cards] == [
        "tiny",
        "draft@v1",
        "support",
        "support@canary",
        "support@champion",
        "support@v2",
        "support@v3",
    ]
    for card in cards:
        assert router.route("acme", card.id).adapter == card.adapter
        assert router.get_model("acme", card.id) == card
        assert card.created == STARTED_AT
    assert {card.owned_by for card in cards[1:]} == {"acme"}
    assert {card.parent for card in cards[1:]} == {"tiny"}


def test_a_model_that_is_not_listed_cannot_be_got(router: Router) -> None:
    with pytest.raises(ModelNotFound):
        router.get_model("acme", "router")


def test_the_base_model_can_be_got_by_both_of_its_names(router: Router) -> None:
    assert router.get_model("acme", "base").id == "base"
    assert router.get_model("acme", "tiny").adapter == "base"


@pytest.fixture
def hidden(tmp_path: Path, home: Home) -> Iterator[SnapshotWatcher]:
    """acme: support v1 and tiny v1 (champions); tiny is older than the base model of its name."""
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
        for seed, adapter in enumerate((SUPPORT, AdapterName("acme", "tiny"))):
            registry.versions.publish(adapter, write_adapter(tmp_path / adapter.name, seed))
            let_serve(registry, adapter, "champion", 1)
        watcher = SnapshotWatcher(registry)
        asyncio.run(watcher.refresh())
        yield watcher


def test_adapter_that_is_named_as_the_base_model_is_told_with_the_names_that_reach_it(
    hidden: SnapshotWatcher,
) -> None:
    told = shadowed_adapters_warning(hidden.current, "tiny")
    router = Router(hidden, "tiny", 256, STARTED_AT)

    assert "acme/tiny; ask for the adapter as 'TENANT/tiny' or 'tiny@champion'" in told
    assert "support" not in told
    assert router.route("acme", "tiny").adapter == "base"
    for name in ("acme/tiny", "tiny@champion"):
        assert router.route("acme", name).adapter == "acme/tiny@v1"
    assert shadowed_adapters_warning(hidden.current, "another") == ""


def test_the_list_has_each_name_once_where_an_adapter_is_named_as_the_base_model(
    hidden: SnapshotWatcher,
) -> None:
    cards = Router(hidden, "tiny", 256, STARTED_AT).models("acme")

    assert [card.id for card in cards if card.id.startswith("tiny")] == [
        "tiny",
        "tiny@champion",
        "tiny@v1",
    ]
    assert cards[0].adapter == "base"
