"""Whether more rows would help: the same run with a quarter, half and all of its training rows.

Each is validated on the same rows, so their losses are compared in pairs: what half of the rows
would have missed is known with an interval, and the chance in the choice of validation rows is no
finding.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import msgspec
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loragate.adapters.rendering.renderer import Supervised
from loragate.trainer.data.splits import SplitFolder
from loragate.trainer.errors import RunFileError
from loragate.trainer.evaluation.losses import Loss, adapted, row_losses
from loragate.trainer.evaluation.statistics import Bootstrap, ConfidenceInterval, ratio
from loragate.trainer.pipeline.sweep import Tried, sweep
from loragate.trainer.run.folder import write_whole
from loragate.trainer.run.run import Run
from loragate.trainer.settings import resolved
from loragate.trainer.training.models import load_float32
from loragate.trainer.training.plan import make_plan

SHARES: Final = (0.25, 0.5, 1.0)
CURVE, PICTURE = "learning-curve.json", "learning-curve.png"
_CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Point:
    """One run: its training rows, and the loss of its best weights in nats a validated token."""

    share: float
    rows: int
    loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """`gain` is by how much all rows have a lower loss than half of them."""

    points: tuple[Point, ...]
    gain: ConfidenceInterval
    validation_rows: int

    @property
    def helps(self) -> bool:
        """Whether the second half of the rows has lowered the loss beyond chance."""
        return self.gain.low > 0

    @property
    def sentence(self) -> str:
        quarter, half, whole = self.points
        measured = (
            f"{half.rows} to {whole.rows} rows lowered the validation loss by "
            f"{self.gain.estimate:.3f} nats a token ({self.gain.low:.3f} to {self.gain.high:.3f}, "
            f"{self.validation_rows} rows)"
        )
        if self.gain.high < 0:
            return f"More rows hurt: {measured}. Look at the rows of the other half."
        if not self.helps:
            return f"Whether more rows would help cannot be told: {measured}."
        before = quarter.loss - half.loss
        # Each doubling gains a constant part of what the one before it did, as a power law does.
        pace = min(1.0, self.gain.estimate / before) if before > 0 else 1.0
        return (
            f"More rows would help: {measured}. At this pace twice as many would lower it by about "
            f"{self.gain.estimate * pace:.3f} more."
        )


def learning_curve(run: Run, *, overwrite: bool = False) -> LearningCurve:
    """Trains the run with each of `SHARES`, below its folder, and compares them. Runs that are
    complete are not trained again.

    Raises RunFileError for a training of the whole model, and what `sweep` raises.
    """
    if run.settings.method.name == "full":
        raise RunFileError("--learning-curve compares adapters; set [method] name to another")
    text = ",".join(f"{share:g}" for share in SHARES)
    tried = sweep(run, [f"training.rows_share={text}"], overwrite=overwrite)
    curve = _compared(run, tried)
    write_whole(run.folder.root / CURVE, msgspec.json.format(msgspec.json.encode(asdict(curve))))
    write_whole(run.folder.root / PICTURE, draw(curve))
    return curve


def draw(curve: LearningCurve) -> bytes:
    """A PNG: validation loss by training rows, with intervals."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    rows, losses = [p.rows for p in curve.points], [p.loss for p in curve.points]
    below = [p.loss - p.low for p in curve.points]
    above = [p.high - p.loss for p in curve.points]
    axes.errorbar(rows, losses, yerr=[below, above], marker="o", capsize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(rows, [str(number) for number in rows])
    axes.set_xlabel("training rows")
    axes.set_ylabel("validation loss (nats a token)")
    axes.set_title(curve.sentence.partition(":")[0], fontsize=11)
    axes.grid(alpha=0.25)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _compared(run: Run, tried: Sequence[Tried]) -> LearningCurve:
    losses = _validation_losses(run, tried)
    first = losses[0]
    bootstrap = Bootstrap(len(first), _CONFIDENCE, _RESAMPLES, run.settings.seed)
    statistics = [ratio([r.nats for r in rows], [r.tokens for r in rows]) for rows in losses]
    points: list[Point] = []
    for one, statistic in zip(tried, statistics, strict=True):
        found = bootstrap.interval(statistic)
        count = int(one.result.metrics["training_rows"])
        share = one.folder.resolved().training.rows_share
        points.append(Point(share, count, found.estimate, found.low, found.high))
    return LearningCurve(
        tuple(points), bootstrap.difference(statistics[1], statistics[2]), len(first)
    )


def _validation_losses(run: Run, tried: Sequence[Tried]) -> list[list[Loss]]:
    """By run, each validation row's loss under its adapter."""
    last = replace(run, folder=tried[-1].folder, settings=tried[-1].folder.resolved())
    splits = SplitFolder.read(run.root / last.settings.data.splits)
    plan = make_plan(last, splits)
    rows = [Supervised(row.ids, row.labels) for row in plan.validation.rows]
    model = load_float32(plan.base.path, resolved(plan.settings.training.device))
    found: list[list[Loss]] = []
    total = len(rows) * len(tried)
    task = run.progress.add_task("comparing", total=total)
    for one in tried:
        with adapted(model, one.folder.adapter) as with_adapter:
            found.append(row_losses(with_adapter, rows, lambda n: run.progress.advance(task, n)))
    run.progress.remove_task(task)
    return found
