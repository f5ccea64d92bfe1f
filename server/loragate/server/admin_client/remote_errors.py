"""What can go wrong with a server at the other end of HTTP, in sentences for its user."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from loragate.adapters.errors import LoragateError


class ServerUnreachable(LoragateError):
    """Nobody answers at the address, or the connection broke."""


class ServerRefused(LoragateError):
    """The server said no; the message is its own."""


class NotLoragate(LoragateError):
    """Something answers, but not as a loragate server does."""

    def __init__(self, url: object, status: int) -> None:
        super().__init__(
            f"{url} did not answer as a loragate server does (status {status}); check --url."
        )


class UnusableKey(LoragateError):
    """A key that no request can carry."""


def authorization(key: str) -> dict[str, str]:
    """The header that carries a key. Raises UnusableKey."""
    if not (key.isascii() and key.isprintable()):
        raise UnusableKey(
            "This is no key: it has characters that a key never has; copy the whole key again, and "
            "nothing beside it."
        )
    return {"authorization": f"Bearer {key}"}


@contextmanager
def speaking_with(url: str) -> Iterator[None]:
    """Turns httpx's errors into ServerUnreachable."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise ServerUnreachable(
            f"No server listens at {url}: start one with `loragate serve`, or correct --url."
        ) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise ServerUnreachable(
            f"'{url}' is no address of a server; write it as in http://127.0.0.1:8000."
        ) from None
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise ServerUnreachable(f"The connection to {url} broke: {what}.") from error


def require_success(response: httpx.Response) -> None:
    """Raises ServerRefused or NotLoragate unless the status is 2xx; reads the body of a refusal."""
    if response.is_success:
        return
    response.read()
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise NotLoragate(response.url, response.status_code) from None
    raise ServerRefused(message)
