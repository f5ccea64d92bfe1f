"""An adapter's page for people: what serves, what is on its way, and what was changed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from loragate.server.cli.output import print_table, say, short, size, when

if TYPE_CHECKING:
    from loragate.server.admin.views import AdapterPageView, AuditView, VersionView

CHAMPION = "champion"
_ON_ITS_WAY = {
    "PUBLISHED": "will serve as soon as a server has loaded and checked it",
    "LOADING": "is being loaded and checked, and serves after that",
    "READY": "is loaded and checked, and about to serve",
    "DRAINING": "is about to serve again",
}


def print_page(page: "AdapterPageView") -> None:
    _say_what_serves(page)
    _say_what_comes(page)
    for version in page.versions:
        if version.state == "DRAINING":
            say("{version} is draining: its last requests are ending.", version=version.version)
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


def _state(page: "AdapterPageView", version: str | None) -> str | None:
    return next((found.state for found in page.versions if found.version == version), None)


def _say_what_comes(page: "AdapterPageView") -> None:
    """What an alias waits for; and what keeps it from the version that it points to."""
    versions = {version.version: version for version in page.versions}
    for alias, desired in page.aliases.items():
        version = versions[desired]
        if version.state == "FAILED":
            say(
                "[bold]{version}[/] was to serve as {alias} and [red]failed[/]: {reason} "
                "[dim]Publish a mended folder, or promote {version} again once the cause is "
                "gone.[/]",
                version=desired,
                alias=alias,
                reason=_sentence(version.reason or "no reason was recorded"),
            )
        elif page.serving.get(alias) != desired:
            say(
                "[bold]{version}[/] {how} (as {alias}).",
                version=desired,
                how=_ON_ITS_WAY[version.state],
                alias=alias,
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
                version.reason,
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
                row.reason,
            )
            for row in rows
        ),
        empty="Nothing was changed yet.",
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
