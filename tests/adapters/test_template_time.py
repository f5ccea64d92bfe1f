import sys
import time

import pytest

from loragate.adapters.rendering import RenderingError, try_template
from loragate.adapters.template_time import TemplateTooSlow, template_time

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
RECURSION = (
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
)
CHAINED = (
    "{% for a in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}"
)


@pytest.mark.parametrize("template", [NESTED, RECURSION, CHAINED])
def test_template_that_runs_away_is_stopped(template: str):
    started = time.thread_time()

    with pytest.raises(RenderingError, match=r"more than 0\.2 s"):
        try_template(template, None, 0.2)

    assert time.thread_time() - started < 1


@pytest.mark.parametrize("template", ["{{ messages", "{{ messages[7].content.upper() }}"])
def test_template_that_cannot_render_a_question_is_refused(template: str):
    with pytest.raises(RenderingError):
        try_template(template, None, 1)


def test_template_that_needs_a_system_prompt_gets_the_contracts():
    template = "{{ messages[1].content + messages[0].content }}"

    try_template(template, "Be brief.", 1)
    with pytest.raises(RenderingError):
        try_template(template, None, 1)


def test_only_processor_time_counts():
    with template_time(0.05):
        time.sleep(0.1)
        sorted([])


def test_what_was_traced_before_is_traced_again():
    before = sys.gettrace()
    with pytest.raises(TemplateTooSlow), template_time(0):
        sorted([2, 1], key=lambda number: number)

    assert sys.gettrace() is before
