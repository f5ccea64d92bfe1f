"""How a run file differs from the one that a run was begun with, setting by setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgspec

from loragate.trainer.run.file import RunFile

# Tables and settings that do not reach the weights, so they may be others when a run goes on.
_FREE_TABLES: Final = frozenset({"evaluation", "publish", "cost"})
_FREE: Final = frozenset({"training.trackers", "training.log_every", "training.save_every"})
# Where things lie. What lies there is compared by its content; see `Inputs`.
_PLACES: Final = frozenset(
    {"folder", "data.raw", "data.splits", "data.replay", "model.base", "model.continue_from"}
    | {"model.chat_template"}
)


@dataclass(frozen=True, slots=True)
class Change:
    """A setting by its name, as `training.learning_rate`, and its values as TOML has them."""

    setting: str
    before: object
    now: object

    def __str__(self) -> str:
        table, _, key = self.setting.rpartition(".")
        where = f"[{table}] {key}" if table else key
        return f"{where} is {_shown(self.now)} and was {_shown(self.before)}"


def changes(begun: RunFile, now: RunFile, decided: RunFile | None = None) -> list[Change]:
    """The settings that would make another training of a run that was begun with `begun`.
    `decided` is the same without "auto": to write down what "auto" came to changes nothing.
    """
    before, after = _flat(begun), _flat(now)
    settled = _flat(decided) if decided else {}
    return [
        Change(setting, before.get(setting), value)
        for setting, value in after.items()
        if _matters(setting) and value not in (before.get(setting), settled.get(setting))
    ]


def with_free_settings(run: RunFile, other: RunFile) -> RunFile:
    """`run` with those settings of `other` that do not reach the weights."""
    training = msgspec.structs.replace(
        run.training,
        trackers=other.training.trackers,
        log_every=other.training.log_every,
        save_every=other.training.save_every,
    )
    limit = other.evaluation.max_tokens
    if limit == "auto":  # which was decided by the same data
        limit = run.evaluation.max_tokens
    evaluation = msgspec.structs.replace(other.evaluation, max_tokens=limit)
    return msgspec.structs.replace(
        run, training=training, evaluation=evaluation, publish=other.publish, cost=other.cost
    )


def _matters(setting: str) -> bool:
    is_free = setting in _FREE or setting.partition(".")[0] in _FREE_TABLES
    return not is_free and setting not in _PLACES


def _flat(run: RunFile) -> Mapping[str, object]:
    """`{"seed": 0, "training.epochs": 3.0, …}`."""
    found: dict[str, object] = {}
    for key, value in cast(dict[str, object], msgspec.to_builtins(run)).items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            found[key] = value
    return found


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()
