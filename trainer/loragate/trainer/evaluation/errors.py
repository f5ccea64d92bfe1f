"""What can keep an evaluation from coming to its result."""

from loragate.adapters.errors import LoragateError


class EvaluationError(LoragateError):
    """Rows, models or a server that cannot be had; the message says which, and what to do."""
