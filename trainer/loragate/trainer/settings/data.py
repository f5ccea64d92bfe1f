"""[data]: which examples are learnt."""

from typing import Annotated, Literal

from msgspec import Meta

from loragate.trainer.settings.section import Auto, Count, Section, Share

BelowOne = Annotated[float, Meta(ge=0, lt=1)]


class DataSettings(Section, frozen=True):
    """Either `raw` files, which the run cleans and splits, or a folder of `splits`.

    Paths are relative to the run file.
    """

    raw: tuple[str, ...] = ()
    splits: str = ""
    # How `raw` is read, cleaned and split; unused for `splits`. See docs/training-data.md.
    format: Literal["auto", "messages", "instruction", "prompt", "sharegpt"] = "auto"
    bad_rows: Literal["refuse", "drop"] = "refuse"
    label_field: str = "label"
    group_field: str = "group"
    language: str = ""
    personal_data: Literal["mask", "drop", "keep"] = "mask"
    near_duplicates: Literal["drop", "keep"] = "drop"
    conflicts: Literal["drop", "keep"] = "drop"
    similarity: Annotated[float, Meta(ge=0.5, le=1)] = 0.8
    validation_share: Share = 0.1
    test_share: Share = 0.1
    # A system message for every conversation that has none. It becomes part of the adapter's
    # contract, so the server says it too.
    system_prompt: str = ""
    # The longest conversation in tokens. "auto": what the model was made for, at most 1024.
    max_tokens: Count | Auto = "auto"
    too_long: Literal["refuse", "drop"] = "refuse"
    # Old examples to keep in the mix: a folder of splits, and their share of the training rows.
    replay: str = ""
    replay_share: BelowOne = 0.1
