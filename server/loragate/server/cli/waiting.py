"""Waiting until a version serves, or cannot."""

import time
from typing import TYPE_CHECKING

from loragate.adapters.errors import LoragateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loragate.adapters.names import AdapterName
    from loragate.server.admin.views import AdapterPageView
    from loragate.server.admin_client.interface import AdminPort


class DoesNotServe(LoragateError):
    """The version that was waited for does not serve; the message says why."""


def wait_until_serving(
    admin: "AdminPort", adapter: "AdapterName", alias: str, version: str, timeout_seconds: float
) -> None:
    """Returns once the alias serves the version. Raises DoesNotServe, with the reason of a FAILED
    one.
    """
    state = ""
    for page in _pages(admin, adapter, timeout_seconds):
        if _serves(page, alias, version):
            return
        state = _state(page, version)
    remedy = (
        "no server has taken it up, so start one with `loragate serve`"
        if state == "PUBLISHED"
        else f"see `loragate adapter show {adapter}`"
    )
    raise DoesNotServe(
        f"{adapter}@{version} does not serve after {timeout_seconds:g} s, it is {state}; {remedy}"
    )


def wait_until_merged(
    admin: "AdminPort", adapter: "AdapterName", version: str, timeout_seconds: float
) -> None:
    """Returns once the version's merged model serves. Raises DoesNotServe where it cannot."""
    state = ""
    for page in _pages(admin, adapter, timeout_seconds):
        state = _merged_state(page, version)
        if state == "SERVING":
            return
    raise DoesNotServe(
        f"{adapter}@{version} is not served merged after {timeout_seconds:g} s, it is "
        f"{state or 'not wanted'}; see `loragate adapter show {adapter}`"
    )


def _pages(
    admin: "AdminPort", adapter: "AdapterName", timeout_seconds: float
) -> "Iterator[AdapterPageView]":
    """The adapter as it stands, and after each change of the registry until the time is up."""
    deadline = time.monotonic() + timeout_seconds
    # Asked for before the page: a change in between is then seen by the next one.
    revision = admin.revision(-1, 0)
    while True:
        yield admin.show(adapter)
        seen = revision
        while revision == seen:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            revision = admin.revision(seen, left)


def _merged_state(page: "AdapterPageView", version: str) -> str:
    """Raises DoesNotServe where it cannot be served."""
    merged = next(found.merged for found in page.versions if found.version == version)
    if merged is not None and merged.state in ("REFUSED", "FAILED"):
        raise DoesNotServe(f"{page.adapter}@{version} cannot be served merged: {merged.reason}")
    return "" if merged is None else merged.state


def _serves(page: "AdapterPageView", alias: str, version: str) -> bool:
    """Raises DoesNotServe where it never will."""
    desired = page.aliases.get(alias)
    if desired != version:
        raise DoesNotServe(
            f"{page.adapter}@{version} was overtaken: {alias} is to point to "
            f"{desired or 'nothing'} by now"
        )
    for found in page.versions:
        if found.version == version and found.state == "FAILED":
            raise DoesNotServe(
                f"{page.adapter}@{version} cannot serve: {found.reason or 'no reason was recorded'}"
            )
    return page.serving.get(alias) == version


def _state(page: "AdapterPageView", version: str) -> str:
    return next(found.state for found in page.versions if found.version == version)
