"""The picture of a run: loss by step."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loragate.trainer.run.folder import Verdict


def draw_curve(lines: Sequence[Mapping[str, float]], verdict: Verdict) -> bytes:
    """A PNG of the log's lines: training and validation loss, and where the minimum was.

    A line has `step` and, in nats a token, `loss` or `validation_loss`.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, label, width, marker in (
        ("loss", "training", 1.0, ""),
        ("validation_loss", "validation", 2.0, "o"),
    ):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=width, marker=marker)
    axes.axvline(verdict.best_step, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        f"minimum {verdict.best_validation_loss:.3f} at step {verdict.best_step}",
        (verdict.best_step, verdict.best_validation_loss),
        xytext=(6, 14),
        textcoords="offset points",
        fontsize=9,
        ha="right" if verdict.best_step else "left",
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.set_title(verdict.fit, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
