"""Asks judges over HTTP in OpenAI's shape, and keeps what they said, so that none is asked twice.

What an endpoint does not know, such as a JSON schema or a limit of tokens by its old name, is left
out or renamed after its first refusal, for all further questions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import httpx
import msgspec

from loragate.trainer.errors import EvaluationError, RunFolderError
from loragate.trainer.evaluation.judges import Judge, Question, Verdict

_TRIES: Final = 4
_LONGEST_WAIT: Final = 30.0  # seconds, whatever a server asks for
_SHOWN: Final = 300  # characters of a refusal
_BUSY: Final = frozenset({408, 409, 425, 429})
_UNKNOWN_FIELD: Final = frozenset({400, 404, 415, 422, 501})


class JudgeAway(EvaluationError):
    """A judge that cannot be asked, and why."""


class _Line(msgspec.Struct, frozen=True):
    """One line of the file of verdicts: what a judge said, and what it came to."""

    key: str
    said: str
    verdict: dict[str, int] | None


class VerdictFile:
    """Verdicts by the keys of their questions, in a file that grows by a line for each. Without a
    path they are kept in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._found: dict[str, Verdict | None] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):
                try:
                    read = msgspec.json.decode(line, type=_Line)
                except msgspec.MsgspecError:  # the last one, cut off when the process was killed
                    continue
                self._found[read.key] = read.verdict

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def get(self, key: str) -> Verdict | None:
        return self._found[key]

    def add(self, key: str, said: str, verdict: Verdict | None) -> None:
        """Raises RunFolderError."""
        self._found[key] = verdict
        if self._path is None:
            return
        line = _Line(key, said, dict(verdict) if verdict is not None else None)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # A line that was cut off ends here.
                file.write(b"\n" + msgspec.json.encode(line))
        except OSError as error:
            raise RunFolderError(f"{self._path} cannot be written: {error.strerror}") from error


class JudgeClient:
    """Asks one judge. The caller closes `client`, whose base address is the judge's. `wait_seconds`
    is the first pause after a failure; each further one is twice as long.
    """

    def __init__(
        self,
        judge: Judge,
        client: httpx.AsyncClient,
        key: str,
        verdicts: VerdictFile,
        wait_seconds: float = 1.0,
    ) -> None:
        self._judge = judge
        self._client = client
        self._key = key
        self._verdicts = verdicts
        self._wait_seconds = wait_seconds
        self._permits = asyncio.Semaphore(judge.settings.concurrency)
        self._has_schema = True
        self._has_temperature = True
        self._limit = "max_tokens"

    async def ask(
        self, questions: Sequence[Question], done: Callable[[], None]
    ) -> dict[str, Verdict | None]:
        """The verdicts by key, None where an answer held none. `done` is called for each question
        that is not known yet. Raises JudgeAway; what was said until then is kept.
        """
        keys = {each.key(self._judge): each for each in questions}
        new = [(key, each) for key, each in keys.items() if key not in self._verdicts]
        random.Random(0).shuffle(new)  # so that no system's answers come first

        async def one(key: str, question: Question) -> None:
            async with self._permits:
                said = await self._said(question)
            self._verdicts.add(key, said, question.read(said))
            done()

        try:
            async with asyncio.TaskGroup() as group:
                for key, question in new:
                    group.create_task(one(key, question))
        except ExceptionGroup as failed:
            # The others were cancelled by it, or failed for the same reason.
            raise failed.exceptions[0] from failed
        return {key: self._verdicts.get(key) for key in keys}

    async def _said(self, question: Question) -> str:
        """What the judge says. Raises JudgeAway."""
        why, tries = "", 0
        while tries < _TRIES:
            if tries:
                await asyncio.sleep(min(_LONGEST_WAIT, self._wait_seconds * 2 ** (tries - 1)))
            body = self._body(question)
            try:
                response = await self._client.post(
                    "chat/completions",
                    json=body,
                    headers={"authorization": f"Bearer {self._key}"} if self._key else {},
                )
            except httpx.TimeoutException:
                seconds = self._judge.settings.timeout_seconds
                why, tries = f"no answer within {seconds:g} s", tries + 1
                continue
            except httpx.TransportError as error:
                why, tries = str(error) or type(error).__name__, tries + 1
                continue
            if response.is_success:
                return self._text_of(response)
            if response.status_code in _UNKNOWN_FIELD and self._give_way(body, response.text):
                continue
            why = f"{response.status_code}: {self._shown(response.text)}"
            if response.status_code not in _BUSY and response.status_code < 500:
                raise JudgeAway(f"{self._who} refuses ({why}); {self._advice(response)}")
            tries += 1
            await asyncio.sleep(_asked_pause(response))
        raise JudgeAway(
            f"{self._who} does not answer ({why}), {_TRIES} times in a row; see to it, then ask it "
            "again with `loragate evaluate RUN --judge`: what it said until now is kept"
        )

    @property
    def _who(self) -> str:
        settings = self._judge.settings
        return f"the judge {self._judge.name!r} ({settings.model} at {settings.url})"

    def _body(self, question: Question) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._judge.settings.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.content},
            ],
            self._limit: self._judge.settings.max_tokens,
        }
        if self._has_temperature:
            body["temperature"] = 0
        if self._has_schema:
            schema = {"name": "verdict", "schema": question.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _give_way(self, body: dict[str, object], refusal: str) -> bool:
        """Whether to ask again without, or with another name for, what this refusal of `body` is
        about. Others that were under way at the same moment may have found it already.
        """
        text = refusal.lower()
        known = {self._limit}
        known |= {"temperature"} if self._has_temperature else set()
        known |= {"response_format"} if self._has_schema else set()
        if body.keys() - {"model", "messages"} != known:
            return True
        if self._limit == "max_tokens" and "max_completion_tokens" in text:
            self._limit = "max_completion_tokens"
        elif self._has_temperature and "temperature" in text:
            self._has_temperature = False
        elif self._has_schema:
            self._has_schema = False
        else:
            return False
        return True

    def _text_of(self, response: httpx.Response) -> str:
        """Raises JudgeAway for what is no answer in OpenAI's shape."""
        try:
            said = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise JudgeAway(
                f"{self._who} answers with what is no chat completion "
                f"({self._shown(response.text)!r}); is its url that of an OpenAI-shaped endpoint, "
                "with /v1 at its end?"
            ) from None
        return said if isinstance(said, str) else ""

    def _shown(self, text: str) -> str:
        """A server's words, without the key, which some repeat."""
        text = text.replace(self._key, "…") if self._key else text
        return " ".join(text.split())[:_SHOWN]

    def _advice(self, response: httpx.Response) -> str:
        table, variable = self._judge.table, self._judge.settings.key_variable
        if response.status_code in (401, 403):
            where = f"the environment's {variable}" if variable else f"{table} key_variable"
            return f"its key comes from {where}"
        return f"see {table} url and model"


def _asked_pause(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, within reason."""
    try:
        return max(0.0, min(_LONGEST_WAIT, float(response.headers.get("retry-after", "0"))))
    except ValueError:  # a date
        return 0.0
