"""Where a run's figures are sent besides its own log."""

from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback

from loragate.trainer.errors import TrainingError
from loragate.trainer.settings.training import TrainingSettings


def check_trackers(training: TrainingSettings) -> None:
    """Raises TrainingError for one that is not installed."""
    for tracker in training.trackers:
        if find_spec(tracker) is None:
            raise TrainingError(
                f"[training] trackers names {tracker!r}, which is not installed; "
                f"`pip install {tracker}`, or leave it out"
            )


def tracker_callbacks(training: TrainingSettings, folder: Path) -> list[TrainerCallback]:
    """TensorBoard's writes into `folder`; transformers makes the others by name."""
    if "tensorboard" not in training.trackers:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(folder)))]
