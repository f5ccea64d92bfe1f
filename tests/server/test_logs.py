import io
import json
import logging
from collections.abc import Iterator

import pytest

from loragate.server.logs import JsonFormatter, configure_logs
from support.server.small_server import Served, bearer

PROMPT, KEY = "the-secret-of-the-prompt", "lg-abcd2345-the-secret-of-the-key"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that any logger says, as it would be written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_line_is_one_json_object_whatever_the_message_holds(log: io.StringIO) -> None:
    logging.getLogger("some").warning("two\nlines %s", '"quoted"', extra={"request_id": "r-1"})
    (line,) = lines(log)
    assert line["message"] == 'two\nlines "quoted"'
    assert (line["level"], line["logger"], line["request_id"]) == ("warning", "some", "r-1")
    assert str(line["time"]).endswith("+00:00")


def test_extra_fields_that_are_not_known_are_not_written(log: io.StringIO) -> None:
    logging.getLogger("some").info("x", extra={"prompt": PROMPT})
    assert PROMPT not in log.getvalue()


def test_a_traceback_is_part_of_its_line(log: io.StringIO) -> None:
    try:
        raise KeyError("why")
    except KeyError:
        logging.getLogger("some").exception("failed")
    (line,) = lines(log)
    assert "KeyError: 'why'" in str(line["traceback"])


async def test_a_request_leaves_one_line_with_its_id_and_status(
    served: Served, log: io.StringIO
) -> None:
    headers = {**served.auth, "x-request-id": "mine-1"}
    await served.client.get("/v1/models", headers=headers)
    (line,) = [line for line in lines(log) if line["logger"] == "loragate.access"]
    assert line["message"] == "GET /v1/models 200"
    assert (line["request_id"], line["status"], line["path"]) == ("mine-1", 200, "/v1/models")
    assert isinstance(line["duration_seconds"], float)


async def test_neither_prompts_nor_keys_nor_answers_are_ever_logged(
    served: Served, log: io.StringIO
) -> None:
    for stream in (False, True):
        await served.chat(PROMPT, max_tokens=3, stream=stream)
        await served.chat(PROMPT, temprature=1)
        await served.chat(PROMPT * 20)
        await served.chat(PROMPT, model="nothing")
        await served.complete(PROMPT, max_tokens=3, echo=True, stream=stream)
    body = {"model": "support", "messages": [{"role": "user", "content": PROMPT}]}
    await served.client.post("/v1/chat/completions", json=body, headers=bearer(KEY))
    served.engine.is_alive = False
    await served.chat(PROMPT)
    written = log.getvalue()
    assert written.count("/v1/chat/completions") >= 9
    for secret in (PROMPT, KEY, served.keys["acme"], served.admin_key, " t101"):
        assert secret not in written


def test_configured_logs_go_to_standard_error_at_the_level_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        configure_logs("warning")
        logging.getLogger("loragate").info("quiet")
        logging.getLogger("loragate").warning("loud")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "loud"
