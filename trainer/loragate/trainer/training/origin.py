"""The adapter version that a run goes on from, found in the registry."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion
from loragate.adapters.store import ArtifactStore
from loragate.trainer.errors import RunFileError
from loragate.trainer.registry import find_version, open_registry
from loragate.trainer.settings.method import MethodSettings


@dataclass(frozen=True, slots=True)
class Origin:
    """A published version and the folder of its files."""

    version: AdapterVersion
    folder: Path

    def peft_config(self) -> dict[str, object]:
        return cast(
            dict[str, object], json.loads((self.folder / "adapter_config.json").read_bytes())
        )


def find_origin(text: str, home: Home) -> Origin:
    """Of `acme/support@v3`, `acme/support@challenger`, or `acme/support`, its champion.

    Raises what `find_version` raises, and StoreError.
    """
    with open_registry(home) as registry:
        version = find_version(registry, text)
    return Origin(version, ArtifactStore(home.artifacts).path(version.digest))


def method_of(origin: Origin, method: MethodSettings) -> MethodSettings:
    """The method with what the adapter's own shape decides. Raises RunFileError where the run file
    says something else.
    """
    config = origin.peft_config()
    own: dict[str, object] = {
        "rank": config["r"],
        "alpha": float(cast(float, config["lora_alpha"])),
        "target_modules": tuple(sorted(cast(list[str], config["target_modules"]))),
    }
    for key, value in own.items():
        given = getattr(method, key)
        given = tuple(sorted(given)) if isinstance(given, tuple) else given
        if given not in ("auto", value):
            raise RunFileError(
                f"[method] {key} is {given}, but {origin.version}, from which training goes on, "
                f"has {value}; leave it out"
            )
    is_rslora = bool(config.get("use_rslora"))
    if is_rslora != (method.name == "rslora"):
        raise RunFileError(
            f"[method] name is '{method.name}', but {origin.version} is "
            f"{'an rslora' if is_rslora else 'no rslora'} adapter"
        )
    return msgspec.structs.replace(method, **own)
