"""Figures as SVG to put into a page, from any thread.

Matplotlib's own way to choose how text and ids are written is its settings, which are the whole
process's: two threads that draw would change them under each other. So a renderer says it here.
"""

import hashlib
import io
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_svg import FigureCanvasSVG, RendererSVG
from matplotlib.figure import Figure

_POINTS_PER_INCH = 72
# Matplotlib's artists and fonts are not made for several threads.
_ONE_AT_A_TIME = threading.Lock()

Given = ParamSpec("Given")


def drawn(plot: Callable[Given, Figure]) -> Callable[Given, str]:
    """Of a function that makes a figure one that returns it as SVG, one at a time."""

    @wraps(plot)
    def draw(*args: Given.args, **kwargs: Given.kwargs) -> str:
        with _ONE_AT_A_TIME:
            return _svg(plot(*args, **kwargs))

    return draw


class _Renderer(RendererSVG):
    """Text stays text, and ids do not change from run to run."""

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        self._draw_text_as_text(gc, x, y, s, prop, angle, ismath, mtext)

    def _make_id(self, type: str, content: object) -> str:
        return type + hashlib.sha256(f"loragate{content}".encode()).hexdigest()[:10]


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    FigureCanvasSVG(figure)  # or the layout would measure texts as a bitmap's
    figure.dpi = _POINTS_PER_INCH
    width, height = (float(size) * _POINTS_PER_INCH for size in figure.get_size_inches())
    page = _Renderer(width, height, out, metadata={"Date": None})
    figure.draw(page)
    page.finalize()
    text = out.getvalue()
    return text[text.index("<svg") :]
