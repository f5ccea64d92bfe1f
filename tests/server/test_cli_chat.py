"""`loragate chat` against a small server that streams as the real one does."""

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from fastapi import Body, FastAPI, Header
from fastapi.responses import JSONResponse, StreamingResponse

from loragate.server.cli.main import main
from support.server.admin_app import listening

KEY = "lg-abcd2345-secret"


@dataclass
class Parrot:
    """Repeats the last message word by word; `forever` never ends, `break` breaks off."""

    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    was_left: threading.Event = field(default_factory=threading.Event)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/t/acme/v1/chat/completions", response_model=None)
        async def chat(
            body: Annotated[dict[str, object], Body()], authorization: Annotated[str, Header()]
        ) -> StreamingResponse | JSONResponse:
            if authorization != f"Bearer {KEY}":
                return JSONResponse({"error": {"message": "This API key is unknown."}}, 401)
            self.bodies.append(body)
            headers = {"x-loragate-adapter": f"acme/{body['model']}"}
            return StreamingResponse(
                self._events(self.said()[-1][-1]), media_type="text/event-stream", headers=headers
            )

        return app

    def said(self) -> list[list[str]]:
        """The contents of the messages of each request."""
        return [
            [message["content"] for message in messages]
            for body in self.bodies
            if isinstance(messages := body["messages"], list)
        ]

    async def _events(self, text: str) -> AsyncIterator[str]:
        words = text.split(" ")
        yield ": keep-alive\n\n"
        yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        try:
            for number, word in enumerate(words):
                yield _chunk(word if number == 0 else f" {word}")
            if text == "forever":
                await asyncio.Event().wait()
        finally:
            if text == "forever":
                self.was_left.set()
        if text == "break":
            yield _event({"error": {"message": "The engine died.", "type": "server_error"}})
            return
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        usage = {"prompt_tokens": 7, "completion_tokens": len(words)}
        yield _event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


def _chunk(text: str) -> str:
    return _event({"choices": [{"index": 0, "delta": {"content": text}}]})


def _event(chunk: object) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parrot]:
    served = Parrot()
    with listening(served.app()) as served.url:
        monkeypatch.setenv("LORAGATE_URL", served.url)
        monkeypatch.setenv("LORAGATE_API_KEY", KEY)
        yield served


def exit_code_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["chat", *arguments])
    return ended.value.code


def converse(lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loragate.server.cli.main", "chat", "acme/support"]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)


def test_one_message_gets_one_answer_with_where_it_came_from(
    parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    code = exit_code_of(
        "acme/support@v2", "-m", "Hello you", "--system", "Be kind.", "--max-tokens", "5"
    )

    answer, end = capsys.readouterr().out.strip().split("\n")
    assert code == 0
    assert answer == "Hello you"
    assert end.startswith("acme/support@v2: 7 + 2 tokens, first token after ")
    assert end.endswith("cut off at max tokens")
    assert parrot.bodies == [
        {
            "model": "support@v2",
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello you"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
        }
    ]


def test_answer_as_json(parrot: Parrot, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code_of("acme/base", "-m", "Hello [bold]you", "--temperature", "0", "--json")

    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer.pop("ttft_seconds") > 0
    assert answer == {
        "text": "Hello [bold]you",
        "adapter": "acme/base",
        "finish_reason": "length",
        "prompt_tokens": 7,
        "completion_tokens": 2,
    }
    assert parrot.bodies[0]["temperature"] == 0


def test_answer_cannot_steer_the_terminal(
    parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code_of("acme/support", "-m", "\x1b[2Jgone\x07 [red]here")

    assert capsys.readouterr().out.startswith("[2Jgone [red]here\n")


def test_conversation_remembers_until_reset(parrot: Parrot) -> None:
    ended = converse("one\n\ntwo\n/reset\nthree\n/exit\nnever sent\n")

    assert ended.returncode == 0
    assert parrot.said() == [["one"], ["one", "one", "two"], ["three"]]


def test_failed_turn_is_taken_back_and_the_conversation_goes_on(parrot: Parrot) -> None:
    ended = converse("one\nbreak\ntwo\n")

    assert ended.returncode == 0
    assert "loragate: The engine died." in ended.stderr
    assert parrot.said()[-1] == ["one", "one", "two"]


def read_until(stream: int, marker: str) -> str:
    seen = b""
    while marker.encode() not in seen:
        ready, _, _ = select.select([stream], [], [], 30)
        assert ready, f"no {marker!r} in {seen[-200:]!r}"
        piece = os.read(stream, 65536)
        assert piece, f"ended without {marker!r} after {seen[-200:]!r}"
        seen += piece
    return seen.decode()


def end_of_interrupted(chat: "subprocess.Popen[bytes]") -> int:
    """Interrupts until it ends: a signal just before `input` begins to read is seen by the next."""
    for _ in range(30):
        chat.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return chat.wait(timeout=1)
    raise AssertionError("the chat did not end")


def test_ctrl_c_stops_the_answer_and_a_second_one_ends(parrot: Parrot) -> None:
    command = [sys.executable, "-m", "loragate.server.cli.main", "chat", "acme/support"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Whoever runs the tests in the background may have Ctrl-C ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as chat:
        assert chat.stdin
        assert chat.stdout
        out = chat.stdout.fileno()
        chat.stdin.write(b"forever\n")
        chat.stdin.flush()
        try:
            read_until(out, "forever")
            chat.send_signal(signal.SIGINT)
            read_until(out, "[stopped]\n> ")
            assert parrot.was_left.wait(timeout=10)
            assert end_of_interrupted(chat) == 0
        finally:
            chat.kill()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["acme/support", "-m", "x", "--key", "wrong"], "This API key is unknown."),
        (["acme/support", "-m", "x", "--key", ""], "A key of tenant 'acme' is needed"),
        (["support", "-m", "x"], "'support' names no adapter"),
        (["globex/support", "-m", "x"], "did not answer as a loragate server does (status 404)"),
        (["acme/support", "-m", "x", "--url", "http://127.0.0.1:1"], "No server listens at"),
        (["acme/support", "-m", "break"], "The engine died."),
    ],
)
def test_failure_is_one_sentence_and_exit_1(
    parrot: Parrot, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    code = exit_code_of(*arguments)

    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("loragate: ")
    assert sentence in error
    assert error.count("\n") == 1
