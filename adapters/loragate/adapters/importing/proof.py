"""Has PEFT say what an adapter does, before it is published: the truth that a server is held to.

An adapter that brings a reference needs none. For another one a process of its own, of low priority
and with limits of time and memory, loads the base model in float32 and the adapter with PEFT, and
scores prompts. What it says becomes the reference in the manifest, and how it was found out the
certificate beside it. The same adapter is not computed twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

import msgspec

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.child_process.process import (
    ChildDied,
    ChildLimits,
    ChildOutOfMemory,
    ChildProcess,
    ChildRefused,
    ChildTooSlow,
    ChildUnavailable,
)
from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.certificate import Certificate
from loragate.adapters.format.files import CONFIG, MANIFEST, WEIGHTS, AdapterFiles, inspect
from loragate.adapters.format.reference import Reference, ScoredPrompt, differences
from loragate.adapters.importing.source import Layout, Source, find_source
from loragate.adapters.temporary_folders import temporary_folder

Prove = Callable[[dict[str, Any]], dict[str, Any]]
# A name and no import: the trainer's packages may not be installed where one publishes.
_PROGRAM: Final = "loragate.trainer.publishing.proof_program"
_NEEDED: Final = ("torch", "transformers", "peft", "accelerate", "datasets")
_SECONDS: Final = 900.0  # of all processors together
_TIMES_ITS_SIZE: Final = 8  # the base model twice in float32, where it is kept in 16 bits, twice
_LEAST_BYTES: Final = 8 << 30
_NICENESS: Final = 10
_LAYOUT: Final = 1  # of what is kept, and of which prompts are asked
# A promotion scores them all, about a millisecond a token on a CPU.
_KEPT_PROMPTS: Final = 3
_MOST_GIVEN: Final = 64
# In nats. What PEFT itself cannot tell from the base model by rounding.
_NO_EFFECT: Final = 2e-4
# In nats on average, and more where the adapter does more: rounding of float32 in another order.
_EXACT: Final = 2e-3
_LARGEST: Final = 1e6


@dataclass(frozen=True, slots=True)
class Proved:
    """The folder to publish. `certificate` is None where the adapter brought its own reference."""

    folder: Path
    certificate: Certificate | None


class Prover:
    """Proves adapters of one base model; `base` is None where none is prepared here."""

    def __init__(
        self,
        base: BaseModel | None,
        cache: Path,
        template: str | None = None,
        special_tokens_in_text: Literal["text", "control"] = "text",
        do: Prove | None = None,
    ) -> None:
        """`cache` is a folder, made where it is needed. `template` is what the server renders with
        in place of the base model's own; `do` is the program's `prove`, by default in a child.
        """
        self._base = base
        self._cache = cache
        self._template = template
        self._special_tokens_in_text = special_tokens_in_text
        self._do = do

    def will_compute(self, folder: Path, source: Path, chats: Path | None = None) -> bool:
        """Whether proving it takes long: seconds, and minutes for a large base model."""
        files = inspect(folder)
        if files.manifest.reference is not None or self._missing() is not None:
            return False
        return not self._kept(files, find_source(source), chats).is_file()

    @contextmanager
    def proved(self, folder: Path, source: Path, chats: Path | None = None) -> Iterator[Proved]:
        """The folder with a manifest that has reference and certificate, for the block.

        `source` is the adapter as it was given, and `folder` what is to be published of it;
        `chats` are a file of conversations like those that it was trained on. Raises InvalidAdapter
        where PEFT finds that it does nothing, computes no numbers, or is another adapter than the
        source.
        """
        files = inspect(folder)
        if files.manifest.reference is not None:
            yield Proved(folder, None)
            return
        found, reference = self._found(files, source, chats)
        with temporary_folder("proof") as scratch:
            out = scratch / "adapter"
            out.mkdir()
            for file in files.files:
                if file.name != MANIFEST:
                    _link(file.path, out / file.name)
            manifest = replace(files.manifest, reference=reference, certificate=found)
            (out / MANIFEST).write_text(manifest.to_json())
            yield Proved(out, found)

    def _found(
        self, files: AdapterFiles, source: Path, chats: Path | None
    ) -> tuple[Certificate, Reference | None]:
        if (missing := self._missing()) is not None:
            return Certificate("nothing", missing), None
        given = find_source(source)
        kept = self._kept(files, given, chats)
        answer = _read(kept)
        if answer is None:
            try:
                answer = self._ask(self._job(files, given, chats))
            except ChildTooSlow as error:
                return _nothing(f"it took more than {error.seconds:.0f} s of processor time"), None
            except ChildOutOfMemory as error:
                return _nothing(f"it took more than {error.memory_bytes >> 20} MiB"), None
            except (ChildDied, ChildRefused, ChildUnavailable) as error:
                return _nothing(str(error)), None
            if "bad_chats" in answer:
                raise InvalidAdapter("invalid_chats", str(answer["bad_chats"]))
            _write(kept, answer)
        assert self._base is not None
        return _judge(answer, self._base.digest, _why_not_source(given))

    def _missing(self) -> str | None:
        """Why nothing can be computed here."""
        if self._base is None:
            return "the base model is not prepared on the machine that published it"
        if self._do is None and (absent := [n for n in _NEEDED if find_spec(n) is None]):
            return (
                f"{' and '.join(absent)} is not installed on the machine that published it (pip "
                "install 'loragate[train]')"
            )
        return None

    def _job(self, files: AdapterFiles, given: Source, chats: Path | None) -> dict[str, Any]:
        assert self._base is not None
        contract = files.manifest.contract
        return {
            "base": str(self._base.path),
            "published": str(files.folder.absolute()),
            "source": str(given.path.absolute()) if _can_be_held(given, files) else "",
            "template": contract.chat_template or self._template,
            "system_prompt": contract.system_prompt,
            "variables": dict(contract.chat_template_kwargs),
            "special_tokens_in_text": self._special_tokens_in_text,
            "chats": str(chats.absolute()) if chats else "",
            "most_given": _MOST_GIVEN,
        }

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        if self._do is not None:
            return self._do(job)
        assert self._base is not None
        size = sum(file.stat().st_size for file in self._base.path.glob("*.safetensors"))
        limits = ChildLimits(
            _SECONDS, max(_LEAST_BYTES, size * _TIMES_ITS_SIZE), niceness=_NICENESS
        )
        child = ChildProcess(_PROGRAM, limits)
        try:
            return child.do(job)
        finally:
            child.close()

    def _kept(self, files: AdapterFiles, given: Source, chats: Path | None) -> Path:
        """Where the answer for this adapter, base model, contract and chats is kept."""
        assert self._base is not None
        hashed = hashlib.sha256()
        for part in (
            f"{_LAYOUT} {self._base.digest} {self._special_tokens_in_text}".encode(),
            f"{_can_be_held(given, files)}".encode(),
            (self._template or "").encode(),
            msgspec.json.encode(files.manifest.contract, enc_hook=dict, order="sorted"),
            (files.folder / CONFIG).read_bytes(),
            chats.read_bytes() if chats is not None else b"",
        ):
            hashed.update(len(part).to_bytes(8, "big") + part)
        with (files.folder / WEIGHTS).open("rb") as weights:
            hashed.update(hashlib.file_digest(weights, "sha256").digest())
        return self._cache / f"{hashed.hexdigest()}.json"


def _judge(
    answer: dict[str, Any], base_digest: str, why_not_source: str
) -> tuple[Certificate, Reference | None]:
    """Raises InvalidAdapter as `proved` does."""
    truth: list[list[float]] = answer.get("source") or answer["published"]
    conversion = None
    if "source" in answer:
        conversion = _apart(answer["source"], answer["published"])
    scored = [_effect(ours, base) for ours, base in zip(truth, answer["base"], strict=True)]
    if not all(map(isfinite, scored)):
        raise InvalidAdapter(
            "not_finite",
            "with this adapter PEFT computes in float32 what is no number (NaN or infinite): the "
            "training diverged; train again with a lower learning rate, or take an earlier "
            "checkpoint",
        )
    _require_effect(truth, answer["base"])
    if conversion is not None and not conversion <= _EXACT * (1 + fmean(scored)):
        raise InvalidAdapter(
            "inexact_import",
            f"what would be published differs by {conversion:.2g} nats on average from the adapter "
            "as PEFT loads it, so it would be another one; save it with PEFT's save_pretrained, or "
            "merge it into its base model",
        )
    kept = _kept_prompts(scored, answer["given"])
    ours, base = [truth[each] for each in kept], [answer["base"][each] for each in kept]
    reason = _sentence(answer.get("source_reason"), why_not_source)
    reference = None
    try:
        prompts = zip((answer["prompts"][each] for each in kept), ours, base, strict=True)
        reference = Reference(tuple(_scored(*prompt) for prompt in prompts))
    except ValueError as error:
        reason = f"{reason}; {error}" if reason else str(error)
    certificate = Certificate(
        loaded="published" if why_not_source or "source_reason" in answer else "source",
        reason=reason,
        libraries=answer["libraries"],
        base_model_digest=base_digest,
        prompts=len(kept),
        tokens=sum(len(answer["prompts"][each]) for each in kept),
        effect=_rounded(_apart(ours, base)),
        half=_rounded(_apart([answer["half"][each] for each in kept], ours)),
        double=_rounded(_apart([answer["double"][each] for each in kept], ours)),
        conversion=None if conversion is None else round(conversion, 6),
    )
    return certificate, reference


def _rounded(nats: float) -> float:
    """Of what may be no number at twice the scale, as JSON has it."""
    return round(nats, 4) if isfinite(nats) else _LARGEST


def _sentence(source_reason: str | None, why_not_source: str) -> str:
    if source_reason is not None:
        return f"PEFT does not load what the trainer wrote ({source_reason})"
    return why_not_source


def _can_be_held(given: Source, files: AdapterFiles) -> bool:
    """Whether it is another folder than what is published, and one that PEFT may load."""
    return given.layout is Layout.PEFT and given.path != files.folder


def _why_not_source(given: Source) -> str:
    return "" if given.layout is Layout.PEFT else f"PEFT cannot read {given.layout} layout"


def _require_effect(truth: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> None:
    largest = max(max(differences(ours, theirs)) for ours, theirs in zip(truth, base, strict=True))
    if largest < _NO_EFFECT:
        raise InvalidAdapter(
            "no_effect",
            f"PEFT's own answers with this adapter are the base model's (log-probabilities differ "
            f"by {largest:.1g} nats at most); train it longer, or publish what was trained",
        )


def _kept_prompts(scored: Sequence[float], given: int) -> list[int]:
    """Those that the adapter changes most: of the given ones, and of the fixed ones."""
    numbers = range(len(scored))
    best = sorted(numbers, key=lambda each: -scored[each])
    of_given = [each for each in best if each < given][:_KEPT_PROMPTS]
    of_fixed = [each for each in best if each >= given][:_KEPT_PROMPTS]
    return sorted([*of_given, *of_fixed])


def _effect(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return fmean(differences(ours, theirs))


def _apart(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return fmean(each for one, other in pairs for each in differences(one, other))


def _scored(ids: Sequence[int], ours: Sequence[float], base: Sequence[float]) -> ScoredPrompt:
    # Rounding may make a log-probability of almost 0 a little more.
    adapter, alone = (tuple(min(0.0, score) for score in scores) for scores in (ours, base))
    return ScoredPrompt(tuple(ids), adapter, alone)


def _nothing(reason: str) -> Certificate:
    return Certificate("nothing", reason[:1000])


def _link(source: Path, target: Path) -> None:
    """The same file under another name where the disk allows it, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _read(kept: Path) -> dict[str, Any] | None:
    try:
        return json.loads(kept.read_bytes())
    except (OSError, ValueError):
        return None


def _write(kept: Path, answer: dict[str, Any]) -> None:
    """What cannot be kept is computed again the next time."""
    draft = kept.with_suffix(f".{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(answer))
        draft.replace(kept)
    except OSError:
        draft.unlink(missing_ok=True)
