"""What is there before the engine starts, and until after it has ended."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.rendering.templates import Templates
from loragate.adapters.store import ArtifactStore
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.concurrency.pools import Pools
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.config import Config, read_chat_template
from loragate.server.gateway.prompting import TEMPLATE_CHILDREN
from loragate.server.telemetry.metrics import Metrics
from loragate.server.upkeep.registry_lock import RegistryLock


@dataclass(frozen=True, slots=True)
class Foundation:
    """The settings, the base model's files, the registry with its lock, and threads."""

    config: Config
    home: Home
    base: BaseModel
    chat_template: str | None
    admin_key: str
    store: ArtifactStore
    templates: Templates
    publish_check: PublishCheck
    pools: Pools
    threads: FairThreads
    registry: Registry
    registry_lock: RegistryLock
    metrics: Metrics
    background: BackgroundTasks

    @classmethod
    @contextmanager
    def opened(cls, config: Config, home: Home, base: BaseModel) -> Iterator["Foundation"]:
        """Raises ConfigError for a template that cannot be read, StoreError where the registry is
        not to be had, and ServedElsewhere where another server has it.
        """
        store = ArtifactStore(home.artifacts)
        chat_template = read_chat_template(config.engine)
        templates = Templates(TEMPLATE_CHILDREN)
        publish_check = PublishCheck(
            BaseProfile.read(base, chat_template), config.engine.max_lora_rank, templates
        )
        admin_key = home.admin_key()
        url = config.registry.url or home.database_url
        with (
            # First, since what follows is called in its threads; its end waits for none of them.
            Pools() as pools,
            # Before the registry, whose publish check renders with these children.
            templates,
            Registry(url, store, publish_check) as registry,
            # Before the engine, which takes minutes: a second server is told at once.
            registry.serving_alone() as lock,
            closing(FairThreads()) as threads,
        ):
            yield cls(
                config=config,
                home=home,
                base=base,
                chat_template=chat_template,
                admin_key=admin_key,
                store=store,
                templates=templates,
                publish_check=publish_check,
                pools=pools,
                threads=threads,
                registry=registry,
                registry_lock=RegistryLock(lock, pools.lock),
                metrics=Metrics(config.metrics.max_adapters),
                background=BackgroundTasks(config.server.degraded_after_seconds),
            )
