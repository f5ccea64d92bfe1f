"""What every training process needs, for the one that they are forked from: imported for that only.

It warns nobody of a missing GPU, which the command itself has been told of.
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

from loragate.trainer.pipeline import training_process  # noqa: E402, F401 - after the line above
