"""Which adapter answers: a tenant and a `model` become a `Route`."""

from contextlib import suppress
from dataclasses import dataclass

from loragate.adapters import errors as registry_errors
from loragate.adapters.names import CHAMPION
from loragate.adapters.registry.merged_states import MergedState
from loragate.adapters.registry.snapshot import Snapshot, SnapshotWatcher
from loragate.server.core import BASE, MERGED, Route
from loragate.server.errors import ModelNotFound

_MANY_MODELS = 300  # a few milliseconds' worth of names


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as a tenant may see it. `created` is in seconds since the epoch; `max_model_len` is
    in tokens; `root` is what answers, whatever name asked for it.
    """

    id: str
    created: int
    owned_by: str
    parent: str | None
    adapter: str
    digest: str
    root: str
    max_model_len: int


class Router:
    """Resolves `NAME`, `NAME@alias`, `NAME@v3`, each of them with `+merged` for its merged model,
    and the base model's name within one tenant.
    """

    def __init__(
        self, registry: SnapshotWatcher, base_model: str, max_model_len: int, started_at: int
    ) -> None:
        self._registry = registry
        self._max_model_len = max_model_len
        self._base_model = base_model
        self._started_at = started_at

    def route(self, tenant: str, model: str) -> Route:
        """Raises ModelNotFound, worded the same for another tenant's adapter and for none.

        The registry's AliasNotServing and VersionFailed pass through: the name is right.
        """
        if model in (BASE, self._base_model):
            return Route(tenant)
        plain = model.removesuffix(MERGED)
        name, _, selector = plain.removeprefix(f"{tenant}/").partition("@")
        snapshot = self._registry.current
        try:
            version = snapshot.resolve(tenant, name, selector or CHAMPION)
        except registry_errors.VersionRetired as error:
            raise ModelNotFound(str(error), param="model") from None
        except registry_errors.AliasNotFound:
            hint = (
                f"Adapter '{name}' has no champion yet; promote a version, or ask for one as "
                f"'{name}@v1'."
                if not selector
                else f"Adapter '{name}' has no alias '{selector}'."
            )
            raise ModelNotFound(hint, param="model") from None
        except registry_errors.VersionNotFound:
            raise ModelNotFound(f"Adapter '{name}' has no {selector}.", param="model") from None
        except (registry_errors.AdapterNotFound, registry_errors.InvalidName):
            raise ModelNotFound(
                f"The model '{model}' does not exist; GET /v1/models lists what this key can use.",
                param="model",
            ) from None
        if plain == model:
            return Route(tenant, version, snapshot.mode(tenant, name, selector or CHAMPION))
        status = snapshot.merged(version)
        if status is None or not status.is_wanted:
            raise ModelNotFound(
                f"{version} is not served merged; ask for '{plain}', or let an operator serve it "
                f"with `loragate merge {version} --serve`.",
                param="model",
            )
        return Route(tenant, version, "merged")

    def has_many_models(self, tenant: str) -> bool:
        """Whether `models` takes more than some milliseconds; asks at most so many adapters."""
        listings = self._registry.current.adapters(tenant)
        return (
            len(listings) > _MANY_MODELS
            or sum(len(listing.aliases) + len(listing.versions) for listing in listings)
            > _MANY_MODELS
        )

    def models(self, tenant: str) -> tuple[ModelCard, ...]:
        """The base model, then each of the tenant's adapters with those of its aliases, versions
        and merged models that can answer.
        """
        cards = [self._base_card(self._base_model)]
        snapshot = self._registry.current
        for listing in snapshot.adapters(tenant):
            is_plain = CHAMPION in listing.aliases and listing.name != self._base_model
            names = [(listing.name, CHAMPION)] if is_plain else []
            selectors = *listing.aliases, *(version.version for version in listing.versions)
            names += [(f"{listing.name}@{selector}", selector) for selector in selectors]
            for model, selector in names:
                # What is still loading or has failed cannot answer, so it is not offered.
                with suppress(registry_errors.AliasNotServing, registry_errors.VersionFailed):
                    version = snapshot.resolve(tenant, listing.name, selector)
                    cards.append(self._card(tenant, model, Route(tenant, version)))
            for version in listing.versions:
                status = snapshot.merged(version)
                if status is not None and status.state is MergedState.SERVING:
                    model = f"{listing.name}@{version.version}{MERGED}"
                    cards.append(self._card(tenant, model, Route(tenant, version, "merged")))
        return tuple(cards)

    def get_model(self, tenant: str, model: str) -> ModelCard:
        """Raises ModelNotFound."""
        route = self.route(tenant, model)
        return self._base_card(model) if route.version is None else self._card(tenant, model, route)

    def _base_card(self, model: str) -> ModelCard:
        return ModelCard(
            id=model,
            created=self._started_at,
            owned_by="loragate",
            parent=None,
            adapter=BASE,
            digest="",
            root=self._base_model,
            max_model_len=self._max_model_len,
        )

    def _card(self, tenant: str, model: str, route: Route) -> ModelCard:
        return ModelCard(
            id=model,
            created=self._started_at,
            owned_by=tenant,
            parent=self._base_model,
            adapter=route.adapter,
            digest=route.digest,
            root=route.answers,
            max_model_len=self._max_model_len,
        )


def shadowed_adapters_warning(snapshot: Snapshot, base_model: str) -> str:
    """One sentence on the adapters whose plain names reach the base model; "" where none does.

    None can be published so, but adapters may be older than the base model that serves now.
    """
    hidden = [str(each) for each in snapshot.listings() if each.name == base_model]
    if not hidden:
        return ""
    return (
        f"requests for '{base_model}' reach the base model, not {', '.join(hidden)}; ask for the "
        f"adapter as 'TENANT/{base_model}' or '{base_model}@{CHAMPION}', or publish it under "
        "another name"
    )
