import sys
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from loragate.adapters.rendering.template_time import TemplateTooSlow, template_time

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

    with pytest.raises(TemplateTooSlow, match=r"more than 0\.2 s"), template_time(0.2):
        render_jinja_template([[]], chat_template=template)

    assert time.thread_time() - started < 1


def test_only_processor_time_counts():
    with template_time(0.05):
        time.sleep(0.1)
        sorted([])


def test_what_was_traced_before_is_traced_again():
    before = sys.gettrace()
    with pytest.raises(TemplateTooSlow), template_time(0):
        sorted([2, 1], key=lambda number: number)

    assert sys.gettrace() is before
