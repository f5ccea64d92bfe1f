"""What a run has to remember from one start to the next; it lies in every checkpoint."""

from pathlib import Path

import msgspec

from loragate.trainer.run.folder import write_whole

FILE = "journal.json"


class Validation(msgspec.Struct, frozen=True):
    """The loss over all validation rows, in nats a supervised token, after `step` steps."""

    step: int
    loss: float


class Journal(msgspec.Struct):
    """`data_digest` is of the data that it was trained on. Times are sums over all starts of the
    run; `training_seconds` is time in steps alone.
    """

    data_digest: str
    validations: list[Validation] = []
    seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def best(self) -> Validation:
        """Of equal ones the earliest."""
        return min(self.validations, key=lambda validation: (validation.loss, validation.step))

    @property
    def since_best(self) -> int:
        """How many validations came after the best."""
        return len(self.validations) - 1 - self.validations.index(self.best)

    def write(self, folder: Path) -> None:
        write_whole(folder / FILE, msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        return msgspec.json.decode((folder / FILE).read_bytes(), type=cls)
