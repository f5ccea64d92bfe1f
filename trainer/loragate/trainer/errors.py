"""What can be wrong with a run of the trainer."""

from loragate.adapters.errors import LoragateError


class RunFileError(LoragateError):
    """A run file that cannot be read, or a setting in it that is unknown or out of range."""


class TrainingError(LoragateError):
    """Training cannot start or go on; the message says why, what is kept, and what to do."""


class RunFolderError(LoragateError):
    """A run's folder that cannot be written or does not hold what it should."""


class EvaluationError(LoragateError):
    """Rows, models or a server that cannot be had; the message says which, and what to do."""
