"""What the validation loss says, in words."""

from collections.abc import Sequence

from loragate.trainer.run.folder import Verdict
from loragate.trainer.training.journal import Validation

# Loss, as a share of the minimum: below this, two validations are equal for a reader.
_NOTABLE = 0.01


def judge(validations: Sequence[Validation], last_step: int) -> Verdict:
    """`validations` begins with step 0, before anything was learnt."""
    first, last = validations[0], validations[-1]
    best = min(validations, key=lambda validation: validation.loss)
    common = {
        "best_step": best.step,
        "best_validation_loss": best.loss,
        "first_validation_loss": first.loss,
        "last_validation_loss": last.loss,
    }
    fell = f"The validation loss fell from {first.loss:.3f} to {best.loss:.3f}"
    if best.step == 0:
        return Verdict(
            fit="unknown",
            sentence=(
                f"Nothing was learnt that holds on unseen rows: the validation loss was lowest "
                f"({first.loss:.3f}) before training. Lower the learning rate, or look at the data."
            ),
            **common,
        )
    if last.loss > best.loss * (1 + _NOTABLE):
        return Verdict(
            fit="overfitted",
            sentence=(
                f"{fell} at step {best.step} and then rose to {last.loss:.3f} by step {last_step}: "
                f"overfitted from there on. The weights of step {best.step} were kept."
            ),
            **common,
        )
    if _still_falling(validations):
        return Verdict(
            fit="underfitted",
            sentence=(
                f"{fell} at step {best.step} of {last_step} and was still falling: underfitted. "
                "More epochs or a higher learning rate would lower it further."
            ),
            **common,
        )
    return Verdict(
        fit="well fitted",
        sentence=(
            f"{fell} at step {best.step} of {last_step} and has levelled out there: well fitted."
        ),
        **common,
    )


def _still_falling(validations: Sequence[Validation]) -> bool:
    """Whether the last fifth of the steps still brought a notable share of the fall."""
    last = validations[-1]
    earlier = [one for one in validations if one.step <= 0.8 * last.step]
    lowest_before = min(one.loss for one in earlier)
    return lowest_before - last.loss > 2 * _NOTABLE * last.loss
