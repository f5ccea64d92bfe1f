import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from loragate.adapters.child_process.process import ChildLimits, ChildUnavailable
from loragate.adapters.rendering.templates import RenderingError, Templates
from support.waiting import wait_for

LIMITS = ChildLimits(seconds=0.3, memory_bytes=128 * 2**20, patience=40)
QUESTION = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
RECURSION = (
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
)


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    with Templates(limits=LIMITS) as templates:
        yield templates


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        # Jinja would compute these three while it compiles.
        ("{{ '%0999999999d' % 1 }}", "needs more than 128 MiB"),
        ("{{ 'a' * 10 ** 10 }}", "needs more than 128 MiB"),
        ("{{ (range(99999) | list) * 999 }}", "needs more than 128 MiB"),
        ("{{ [messages] * 10 ** 9 }}", "needs more than 128 MiB"),
        ("{% set all = namespace(text='a' * 999) %}{% for i in range(99) %}"
         "{% set all.text = all.text ~ all.text %}{% endfor %}", "needs more than 128 MiB"),
        ("{{ 'a' * 9000000 }}", "writes 9000000 characters, more than 8388608"),
        (NESTED, r"computes for more than 0\.3 s"),
        (RECURSION, r"computes for more than 0\.3 s"),
        ("{{ 7 ** 77777777 % 2 }}", r"computes for more than 0\.3 s"),
        ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "recursion"),
        ("{{ messages", "unexpected end of template"),
        ("{{ messages[7].content.upper() }}", "no attribute 'content'|no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)  # fmt: skip
def test_template_without_bounds_is_refused_and_costs_this_process_nothing(
    templates: Templates, template: str, reason: str
):
    own = psutil.Process()
    templates.render("warm", QUESTION)
    memory, processor = own.memory_info().rss, time.process_time()

    with pytest.raises(RenderingError, match=reason):
        templates.render(template, QUESTION)

    assert own.memory_info().rss - memory < 16 * 2**20
    assert time.process_time() - processor < 0.3
    assert templates.render("{{ messages[0].content }}", QUESTION) == "Hello"


@pytest.mark.parametrize("continue_final_message", [False, True])
@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "  {% if add_generation_prompt %}\n assistant: {% endif %}\n{{ messages[-1].content }}\n",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}"
        "{% endfor %}{% generation %}{{ messages[-1].content }}{% endgeneration %}",
        "{{ tools | tojson(indent=1) }}{{ messages | tojson }}{{ messages[-1].content | trim }}",
        "{{ documents[0].title | upper }} {{ 3 * '=' }} {{ 7 // 2 }}{{ messages[-1]['content'] }}",
        "{{ strftime_now('%Y') }} {{ eos_token }} {{ '%s-%s' % (1, 2) }}{{ messages[-1].content }}",
    ],
)
def test_template_renders_apart_as_it_does_in_the_trainer(
    templates: Templates, template: str, continue_final_message: bool
):
    conversation = [
        {"role": "system", "content": "Be brief: \U0001f600 é <&> \ud800"},
        {"role": "assistant", "content": "One, two "},
    ]
    variables = {"bos_token": "<s>", "eos_token": "</s>", "documents": [{"title": "t", "text": ""}]}
    expected, _ = chat_template_utils.render_jinja_template(
        [conversation],
        tools=[TOOL],
        chat_template=template,
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
        **variables,
    )

    text = templates.render(
        template,
        conversation,
        tools=[TOOL],
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
        variables=variables,
    )

    assert [text] == expected


def test_one_template_renders_while_another_runs_away():
    with (
        Templates(children=2, limits=ChildLimits(60, 2**27)) as templates,
        ThreadPoolExecutor() as pool,
    ):
        runaway = pool.submit(templates.render, NESTED, QUESTION)
        assert wait_for(lambda: bool(templates.pids), 20)

        assert templates.render("{{ messages[0].content }}", QUESTION) == "Hello"
        assert not runaway.done()

        templates.close()
        with pytest.raises((RenderingError, ChildUnavailable)):
            runaway.result(timeout=10)


def test_child_is_given_no_keys_and_none_of_the_open_files(
    templates: Templates, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORAGATE_ADMIN_KEY", "not for others")
    with open(os.devnull) as file:
        os.set_inheritable(file.fileno(), True)
        with Templates() as fresh:
            fresh.render("", QUESTION)
            (pid,) = fresh.pids
            child = psutil.Process(pid)

            assert "LORAGATE_ADMIN_KEY" not in child.environ()
            assert child.num_fds() <= 6


def test_signal_that_makes_a_server_drain_leaves_it_its_children(templates: Templates):
    templates.render("", QUESTION)
    (pid,) = templates.pids
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)

    assert templates.render("{{ messages[0].content }}", QUESTION) == "Hello"
    assert templates.pids == (pid,)


def test_template_is_rendered_although_its_child_was_killed(templates: Templates):
    templates.render("", QUESTION)
    os.kill(templates.pids[0], signal.SIGKILL)

    assert templates.render("{{ messages[0].content }}", QUESTION) == "Hello"


PARENT = f"""
import threading, time
from loragate.adapters.child_process.process import ChildLimits
from loragate.adapters.rendering.templates import Templates
templates = Templates(limits=ChildLimits(600, 2**28))
templates.render("", {QUESTION})
print(templates.pids[0], flush=True)
templates.render({NESTED!r}, {QUESTION})
"""


def test_child_ends_with_a_parent_that_was_killed_while_it_renders():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert wait_for(lambda: child.cpu_percent(0.05) > 20, 20)  # it is at work
        parent.kill()
        parent.wait()
    with suppress(psutil.NoSuchProcess):
        assert child.wait(timeout=10) is None


def test_template_that_needs_a_system_prompt_gets_the_contracts(templates: Templates):
    template = "{{ messages[1].content + messages[0].content }}"

    templates.try_out(template, "Be brief.")
    with pytest.raises(RenderingError):
        templates.try_out(template, None)


def test_nothing_starts_again_once_it_is_closed():
    templates = Templates()
    templates.close()

    with pytest.raises(ChildUnavailable, match="closed"):
        templates.render("", QUESTION)
    assert not templates.pids


def test_environment_that_the_child_replaces_is_where_transformers_takes_it_from():
    used = getattr(chat_template_utils, "ImmutableSandboxedEnvironment", None)

    assert used is ImmutableSandboxedEnvironment
