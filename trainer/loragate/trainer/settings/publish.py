"""`[publish]`: where a run that holds what was required goes, and how it is to be called there."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from loragate.trainer.settings.section import Section

MergeDtype = Literal["bfloat16", "float16", "float32"]


class SamplingSettings(Section, frozen=True):
    """What a request gets that says nothing else."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET


class PublishSettings(Section, frozen=True):
    """An empty `adapter`: the run ends with its report and publishes nothing."""

    adapter: str = ""  # acme/support
    promote: bool = False  # let it serve at once
    max_tokens_cap: Annotated[int, Meta(ge=1)] | None = None
    stop: tuple[str, ...] = ()
    sampling: SamplingSettings = SamplingSettings()
    reference_prompts: Annotated[int, Meta(ge=0, le=8)] = 4  # the gate compares these; 0: none
    license: str = ""  # for the model card, as a hub names it: apache-2.0
    description: str = ""  # one sentence for the model card
    merge: bool = False  # make the merged model too
    merge_dtype: MergeDtype = "bfloat16"
    max_shard_size: str = "4GB"  # of the merged model's files
