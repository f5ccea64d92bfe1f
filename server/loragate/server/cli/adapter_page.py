"""An adapter's page for people: what serves, what is on its way, and what was changed."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loragate.adapters.names import CHAMPION
from loragate.server.cli.output import print_table, say, short, size, when

if TYPE_CHECKING:
    from loragate.server.admin.views import AdapterPageView, AuditView, VersionView

_ON_ITS_WAY = {
    "PUBLISHED": "will serve as soon as a server has loaded and checked it",
    "LOADING": "is being loaded and checked, and serves after that",
    "READY": "is loaded and checked, and about to serve",
    "DRAINING": "is about to serve again",
}
# What a server found wrong with a version begins with a code for programs.
_CODED = re.compile(r"(?P<code>[a-z][a-z0-9_]*): (?P<sentence>.+)", re.DOTALL)
_NOT_LOADED = "not_loaded"  # of what a server could not load, for reasons of its machine
_GIST = 60  # characters of a reason in a table


def print_page(page: "AdapterPageView") -> None:
    _say_what_serves(page)
    _say_what_comes(page)
    _say_what_failed(page)
    _say_what_is_not_loaded(page)
    for version in page.versions:
        if version.state == "DRAINING":
            say("{version} is draining: its last requests are ending.", version=version.version)
        if version.pinned:
            _say_pinned(version)
        _say_merged(page, version)
        if version.certificate is not None:
            say(
                "[dim]{version} by PEFT:[/] {proof}",
                version=version.version,
                proof=_sentence(version.certificate.sentence),
            )
    _print_versions(page.versions)
    _print_audit(page.audit)


def _say_what_serves(page: "AdapterPageView") -> None:
    if CHAMPION not in page.aliases:
        say(
            "[bold]{adapter}[/]: no version serves yet; choose one with "
            "`loragate adapter promote {adapter} {newest}`.",
            adapter=page.adapter,
            newest=page.versions[0].version if page.versions else "v1",
        )
    elif _state(page, page.serving.get(CHAMPION)) in (None, "FAILED"):
        say("[bold]{adapter}[/]: no version serves yet.", adapter=page.adapter)
    else:
        say(
            "[bold]{adapter}[/]: [green]{champion} serves[/] (its champion).",
            adapter=page.adapter,
            champion=page.serving[CHAMPION],
        )


def _say_pinned(version: "VersionView") -> None:
    if version.pin_refusal:
        say(
            "[bold]{version}[/] is pinned, but [red]not kept[/]: {reason}",
            version=version.version,
            reason=_sentence(version.pin_refusal),
        )
    else:
        say("{version} is pinned: a server keeps it loaded.", version=version.version)


def _say_merged(page: "AdapterPageView", version: "VersionView") -> None:
    merged = version.merged
    if merged is None or not merged.state:
        return
    routes = [
        alias
        for alias, mode in page.modes.items()
        if mode == "merged" and page.aliases[alias] == version.version
    ]
    whose = f" for {' and '.join(routes)}" if routes else ""
    named = {"version": version.version, "whose": whose, "state": merged.state}
    if merged.state == "SERVING":
        say("{version} is [green]served merged[/]{whose}, by an engine of its own.", **named)
    elif merged.reason:
        say(
            "[bold]{version}[/] is to be served merged{whose}, but that is [red]{state}[/]: "
            "{reason}",
            **named,
            reason=_sentence(merged.reason),
        )
    else:
        say("{version} is to be served merged{whose}; that is {state}.", **named)


def _state(page: "AdapterPageView", version: str | None) -> str | None:
    return next((found.state for found in page.versions if found.version == version), None)


def _say_what_comes(page: "AdapterPageView") -> None:
    for alias, desired in page.aliases.items():
        state = _state(page, desired)
        if page.serving.get(alias) != desired and state in _ON_ITS_WAY:
            say(
                "[bold]{version}[/] {how} (as {alias}).",
                version=desired,
                how=_ON_ITS_WAY[state],
                alias=alias,
            )


def _say_what_failed(page: "AdapterPageView") -> None:
    for version in page.versions:
        if version.state != "FAILED":
            continue
        aliases = [alias for alias, desired in page.aliases.items() if desired == version.version]
        wanted = f" was to serve as {' and '.join(aliases)} and" if aliases else ""
        code, reason = _split(version.reason or "no reason was recorded")
        say(
            "[bold]{version}[/]{wanted} [red]failed[/]{code}: {reason} "
            "[dim]Publish a mended folder, or promote {version} again once the cause is gone.[/]",
            version=version.version,
            wanted=wanted,
            code=f" ({code})" if code else "",
            reason=_sentence(reason),
        )


def _say_what_is_not_loaded(page: "AdapterPageView") -> None:
    for version in page.versions:
        code, reason = _split(version.reason)
        if version.state == "PUBLISHED" and code == _NOT_LOADED:
            say(
                "[bold]{version}[/] is [red]not loaded[/]: {reason} "
                "[dim]Nothing is wrong with the version; the server tries again by itself.[/]",
                version=version.version,
                reason=_sentence(reason),
            )


def _print_versions(versions: "Iterable[VersionView]") -> None:
    print_table(
        (
            *("Version", "State", "Serves as", "To serve as", "Rank", "Size", "Digest"),
            *("Published", "Why"),
        ),
        (
            (
                version.version,
                f"{version.state} (retiring)" if version.retiring else version.state,
                ", ".join(version.serves),
                ", ".join(alias for alias in version.aliases if alias not in version.serves),
                str(version.rank),
                size(version.size_bytes),
                short(version.digest),
                when(version.created_at),
                _gist(version.reason),
            )
            for version in versions
        ),
        empty="It has no versions.",
    )


def _print_audit(rows: "Iterable[AuditView]") -> None:
    print_table(
        ("When", "Who", "What", "Of", "From", "To", "Reason"),
        (
            (
                when(row.at),
                row.actor,
                row.action,
                row.subject.partition("@")[2],
                row.from_state or row.from_version or "",
                row.to_state or row.to_version or "",
                _gist(row.reason),
            )
            for row in rows
        ),
        empty="Nothing was changed yet.",
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _split(reason: str) -> tuple[str, str]:
    """The code of a reason, if it has one, and its sentence."""
    coded = _CODED.fullmatch(reason)
    return (coded["code"], coded["sentence"]) if coded else ("", reason)


def _gist(reason: str) -> str:
    """What a table has room for."""
    code, sentence = _split(reason)
    short_form = code or sentence
    return short_form if len(short_form) <= _GIST else f"{short_form[: _GIST - 1]}…"
