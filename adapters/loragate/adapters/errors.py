"""Everything that loragate's packages refuse, one class per reason.

An error of the registry keeps its data as attributes (and in ``args``, so it pickles); the sentence
is made when it is shown and says what is wrong and what to do. A caller turns classes into statuses
and never parses sentences.
"""

from __future__ import annotations


class LoragateError(Exception):
    """Root of every error the project raises on purpose."""


class BaseModelError(LoragateError):
    """A base model cannot be prepared or read; the message says why and what to do."""


class ConfigError(LoragateError):
    """A setting that is unknown, of the wrong type, or out of range."""


class InvalidName(LoragateError, ValueError):
    """A tenant, adapter, alias or version name that the grammar does not allow."""

    def __init__(self, kind: str, value: str, rule: str) -> None:
        super().__init__(kind, value, rule)
        self.kind = kind
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.value!r} is not a valid {self.kind} name; {self.rule}"


class BaseModelName(InvalidName):
    """An adapter's name by which requests reach the base model: it could never be asked for."""


class InvalidLimits(LoragateError, ValueError):
    """A limit that is not a positive whole number."""

    def __init__(self, field: str, value: object) -> None:
        super().__init__(field, value)
        self.field = field
        self.value = value

    def __str__(self) -> str:
        return (
            f"{self.field} is {self.value!r}; give a whole number of at least 1, "
            "or leave it out for no limit"
        )


class TenantNotFound(LoragateError, LookupError):
    """No tenant of this id, or a deleted one."""

    def __init__(self, tenant: str) -> None:
        super().__init__(tenant)
        self.tenant = tenant

    def __str__(self) -> str:
        return f"there is no tenant {self.tenant!r}; create it with `loragate tenant create`"


class TenantExists(LoragateError):
    """The id is taken, perhaps by a deleted tenant: an id is never given to somebody else."""

    def __init__(self, tenant: str) -> None:
        super().__init__(tenant)
        self.tenant = tenant

    def __str__(self) -> str:
        return (
            f"the tenant id {self.tenant!r} is already taken (a deleted tenant keeps its id); "
            "choose another, or make a further key with `loragate key create`"
        )


class KeyNotFound(LoragateError, LookupError):
    """No API key of this id. Only the public part is kept, should a whole key be passed."""

    def __init__(self, key_id: str) -> None:
        public = "-".join(key_id.split("-")[:2])[:16]
        super().__init__(public)
        self.key_id = public

    def __str__(self) -> str:
        return (
            f"there is no API key {self.key_id!r}; a key's id is its part up to the second hyphen, "
            "as in lg-abcd2345"
        )


class AdapterNotFound(LoragateError, LookupError):
    """The tenant has no adapter of this name."""

    def __init__(self, tenant: str, name: str) -> None:
        super().__init__(tenant, name)
        self.tenant = tenant
        self.name = name

    def __str__(self) -> str:
        return (
            f"there is no adapter '{self.tenant}/{self.name}'; publish it with "
            f"`loragate adapter publish {self.tenant}/{self.name} FOLDER`, or check the name"
        )


class VersionNotFound(LoragateError, LookupError):
    """The adapter never had this version."""

    def __init__(self, tenant: str, name: str, version: str) -> None:
        super().__init__(tenant, name, version)
        self.tenant = tenant
        self.name = name
        self.version = version

    def __str__(self) -> str:
        return (
            f"adapter '{self.tenant}/{self.name}' has no version {self.version!r}; "
            f"see `loragate adapter show {self.tenant}/{self.name}`"
        )


class VersionRetired(LoragateError):
    """The version is retired: it gets no alias and no requests."""

    def __init__(self, tenant: str, name: str, version: str) -> None:
        super().__init__(tenant, name, version)
        self.tenant = tenant
        self.name = name
        self.version = version

    def __str__(self) -> str:
        return (
            f"version {self.tenant}/{self.name}@{self.version} is retired; "
            "use another version, or publish its folder again for a new number"
        )


class VersionInUse(LoragateError):
    """The version cannot be retired while aliases point to it."""

    def __init__(self, tenant: str, name: str, version: str, aliases: tuple[str, ...]) -> None:
        super().__init__(tenant, name, version, aliases)
        self.tenant = tenant
        self.name = name
        self.version = version
        self.aliases = aliases

    def __str__(self) -> str:
        return (
            f"version {self.tenant}/{self.name}@{self.version} is in use by alias "
            f"{', '.join(self.aliases)}; move or delete the alias first"
        )


class NotServedMerged(LoragateError):
    """A route cannot go to a merged model that is not to be served."""

    def __init__(self, tenant: str, name: str, version: str) -> None:
        super().__init__(tenant, name, version)
        self.tenant = tenant
        self.name = name
        self.version = version

    def __str__(self) -> str:
        named = f"{self.tenant}/{self.name}@{self.version}"
        return (
            f"version {named} is not served merged; ask for it with `loragate merge {named} "
            "--serve`"
        )


class MergedInUse(LoragateError):
    """A merged model has to be served while requests are sent to it. ``users`` are who sends them,
    as in ``alias champion`` and ``experiment 3``.
    """

    def __init__(self, tenant: str, name: str, version: str, users: tuple[str, ...]) -> None:
        super().__init__(tenant, name, version, users)
        self.tenant = tenant
        self.name = name
        self.version = version
        self.users = users

    def __str__(self) -> str:
        return (
            f"the merged model of {self.tenant}/{self.name}@{self.version} is in use by "
            f"{', '.join(self.users)}; end that first, an alias's use with `loragate adapter route "
            f"{self.tenant}/{self.name} unmerged`, a server's with `loragate merge "
            f"{self.tenant}/{self.name}@{self.version} --stop`"
        )


class NotMerged(LoragateError, LookupError):
    """A version has no merged model; the message says how to make it."""


class VersionHeld(LoragateError):
    """The version cannot be retired while a rollout or an experiment sends requests to it.
    ``trial`` is that, as in ``rollout 3``.
    """

    def __init__(self, tenant: str, name: str, version: str, trial: str) -> None:
        super().__init__(tenant, name, version, trial)
        self.tenant = tenant
        self.name = name
        self.version = version
        self.trial = trial

    def __str__(self) -> str:
        return (
            f"version {self.tenant}/{self.name}@{self.version} is held by {self.trial}; "
            "end that first"
        )


class TrialUnderWay(LoragateError):
    """An adapter can have one rollout or experiment at a time. ``trial`` is the one it has."""

    def __init__(self, tenant: str, name: str, trial: str) -> None:
        super().__init__(tenant, name, trial)
        self.tenant = tenant
        self.name = name
        self.trial = trial

    def __str__(self) -> str:
        return (
            f"adapter '{self.tenant}/{self.name}' already has {self.trial} under way; "
            "wait for its end, or end it"
        )


class TrialNotFound(LoragateError, LookupError):
    """No such rollout or experiment. ``which`` is its number, or ``of acme/support``."""

    def __init__(self, which: int | str) -> None:
        super().__init__(which)
        self.which = which

    def __str__(self) -> str:
        return f"there is no rollout or experiment {self.which}; list those that there are"


class TrialMovedOn(LoragateError):
    """The rollout or experiment is no longer in the state that a change began from."""

    def __init__(self, trial: str, expected: str, state: str) -> None:
        super().__init__(trial, expected, state)
        self.trial = trial
        self.expected = expected
        self.state = state

    def __str__(self) -> str:
        return (
            f"{self.trial} was {self.expected} and is {self.state} by now; "
            "look at it again before changing it"
        )


class RequestNotFound(LoragateError, LookupError):
    """The tenant made no request of this id, or it is not on record."""

    def __init__(self, tenant: str, request_id: str) -> None:
        super().__init__(tenant, request_id)
        self.tenant = tenant
        self.request_id = request_id

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant!r} has no request {self.request_id!r}; "
            "send the x-request-id of its answer"
        )


class FeedbackGiven(LoragateError):
    """The request has another value of this metric already, and the first one counts."""

    def __init__(self, request_id: str, metric: str) -> None:
        super().__init__(request_id, metric)
        self.request_id = request_id
        self.metric = metric

    def __str__(self) -> str:
        return (
            f"request {self.request_id!r} already has another {self.metric!r}, which counts; "
            "send feedback once for each request and metric"
        )


class VersionFailed(LoragateError):
    """The version could not be loaded or did not pass a check. ``reason`` says what was wrong."""

    def __init__(self, tenant: str, name: str, version: str, reason: str) -> None:
        super().__init__(tenant, name, version, reason)
        self.tenant = tenant
        self.name = name
        self.version = version
        self.reason = reason

    def __str__(self) -> str:
        reason = self.reason or "no reason was recorded"
        return (
            f"version {self.tenant}/{self.name}@{self.version} cannot be served: {reason}; "
            "publish a mended folder, or promote the version again once the cause is gone"
        )


class VersionNotReady(LoragateError):
    """An alias can serve only a version that is in the engine and checked."""

    def __init__(self, tenant: str, name: str, version: str, state: str) -> None:
        super().__init__(tenant, name, version, state)
        self.tenant = tenant
        self.name = name
        self.version = version
        self.state = state

    def __str__(self) -> str:
        return (
            f"version {self.tenant}/{self.name}@{self.version} is {self.state} and cannot serve "
            "yet; load and check it first"
        )


class IllegalMove(LoragateError):
    """A version's state cannot change so. ``legal`` is where it can go from ``current``."""

    def __init__(self, current: str, wanted: str, legal: tuple[str, ...]) -> None:
        super().__init__(current, wanted, legal)
        self.current = current
        self.wanted = wanted
        self.legal = legal

    def __str__(self) -> str:
        remedy = (
            f"from there it can become {' or '.join(self.legal)}"
            if self.legal
            else "that state is final, so publish the folder again for a new version"
        )
        return f"a version that is {self.current} cannot become {self.wanted}; {remedy}"


class AliasNotFound(LoragateError, LookupError):
    """The adapter has no alias of this name."""

    def __init__(self, tenant: str, name: str, alias: str) -> None:
        super().__init__(tenant, name, alias)
        self.tenant = tenant
        self.name = name
        self.alias = alias

    def __str__(self) -> str:
        remedy = (
            f"promote a version with `loragate adapter promote {self.tenant}/{self.name} vN`"
            if self.alias == "champion"
            else "set it to a version first, or name a version as in @v1"
        )
        return f"adapter '{self.tenant}/{self.name}' has no alias {self.alias!r}; {remedy}"


class AliasNotServing(LoragateError):
    """The alias exists and nothing serves by it yet. ``version`` is the one that is to serve, and
    ``state`` how far it has come.
    """

    def __init__(self, tenant: str, name: str, alias: str, version: str, state: str) -> None:
        super().__init__(tenant, name, alias, version, state)
        self.tenant = tenant
        self.name = name
        self.alias = alias
        self.version = version
        self.state = state

    def __str__(self) -> str:
        return (
            f"adapter '{self.tenant}/{self.name}' does not serve as {self.alias!r} yet: "
            f"{self.version} is {self.state}; ask again in a moment"
        )


class AliasMovedOn(LoragateError):
    """The alias is to point elsewhere by now, so this version must not begin to serve by it."""

    def __init__(self, tenant: str, name: str, alias: str, version: str, desired: str) -> None:
        super().__init__(tenant, name, alias, version, desired)
        self.tenant = tenant
        self.name = name
        self.alias = alias
        self.version = version
        self.desired = desired

    def __str__(self) -> str:
        return (
            f"alias '{self.tenant}/{self.name}@{self.alias}' is to point to {self.desired} by now; "
            f"do not let {self.version} serve by it"
        )


class NothingToRollBack(LoragateError):
    """The alias has no earlier version that could serve."""

    def __init__(self, tenant: str, name: str, version: str) -> None:
        super().__init__(tenant, name, version)
        self.tenant = tenant
        self.name = name
        self.version = version

    def __str__(self) -> str:
        return (
            f"adapter '{self.tenant}/{self.name}' cannot be rolled back: before {self.version} its "
            "champion pointed to no version that is still published; promote a version by number"
        )


class InvalidAdapter(LoragateError, ValueError):
    """A folder that cannot be published. ``code`` is for programs, ``reason`` for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class InvalidRecord(LoragateError, ValueError):
    """A value that the registry's database cannot keep, such as a text with a NUL."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the registry cannot keep such a value: {self.reason}"


class InvalidCursor(LoragateError, ValueError):
    """A listing is to go on after what is no row of it."""

    def __init__(self, after: str) -> None:
        super().__init__(after)
        self.after = after

    def __str__(self) -> str:
        return (
            f"this listing cannot go on after {self.after!r}; give what its part before has named, "
            "or leave it out to begin"
        )


class StoreError(LoragateError):
    """The disk or the database would not do its part: full, read-only, damaged, locked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class UnreadableRecord(StoreError):
    """A record of the registry's database says what it cannot: damaged, or of a newer loragate."""


class ServedElsewhere(StoreError):
    """Another server has the registry."""

    def __init__(self, url: str) -> None:
        super().__init__(url)

    def __str__(self) -> str:
        return (
            f"another server runs on {self.reason}; stop it first, or give this one a database of "
            "its own"
        )


class ServingLockLost(StoreError):
    """A server's right to say what is loaded is in doubt: its connection to PostgreSQL is gone."""

    def __init__(self, url: str) -> None:
        super().__init__(url)

    def __str__(self) -> str:
        return (
            f"the connection that keeps other servers from {self.reason} was lost; nothing is "
            "loaded or promoted until it is back"
        )
