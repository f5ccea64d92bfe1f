"""The tables of a run file, a class each; `run.file` has the whole tree and [data]."""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

T = TypeVar("T")

Auto = Literal["auto"]
Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
PartOfRows = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the run file. An unknown key is refused by name."""


def resolved(value: T | Auto) -> T:
    """The value of a setting that is no longer "auto". Raises ValueError where it still is, which
    is a mistake of the program: only the settings of a TrainingPlan are resolved.
    """
    if value == "auto":
        raise ValueError("this setting is still 'auto'; resolve the run file first")
    return value


class ModelSettings(Section, frozen=True):
    """[model]: what is trained, and from where."""

    # What `loragate model prepare` prepared: its name, folder, or hub id.
    base: str = "smollm2-135m-instruct"
    # An adapter version to go on from, such as acme/support@v3.
    continue_from: str = ""
    # A file with a chat template that replaces the model's own. It becomes part of the contract.
    chat_template: str = ""
    # Variables of the template, for its rows and, by the contract, for requests. "auto": those of
    # the version that training goes on from; else enable_thinking = false where the template has
    # that switch and no row has reasoning, or none.
    chat_template_kwargs: dict[str, object] | Auto = "auto"


MethodName = Literal["lora", "rslora", "qlora", "full"]
# What every engine serves without padding, and the publish check accepts.
Rank = Literal[1, 8, 16, 32, 64, 128, 256]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class MethodSettings(Section, frozen=True):
    """[method]: which weights are learnt. For a full training all but `name` is ignored."""

    name: MethodName = "lora"
    # "auto": 16, or that of the adapter that training goes on from.
    rank: Rank | Auto = "auto"
    # The change's scale: alpha / rank, for rslora alpha / sqrt(rank). "auto": twice the rank; for
    # rslora the rank.
    alpha: Positive | Auto = "auto"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    # "auto": every linear layer of attention and MLP.
    target_modules: tuple[str, ...] | Auto = "auto"
    # Of the saved adapter; float32 keeps all that was learnt, bfloat16 is half the size.
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    # Of qlora: how the base's weights are kept.
    quantization: Literal["nf4", "int8"] = "nf4"
    double_quantization: bool = True


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Precision = Literal["fp32", "bf16"]


class TrainingSettings(Section, frozen=True):
    """[training]: how the weights are learnt. A step is one update of the weights, from `batch_size
    * gradient_accumulation` rows a device.

    `max_steps` 0: as many as the epochs take.
    """

    epochs: Positive = 3.0
    max_steps: Whole = 0
    # "auto": 8; where memory holds fewer, 4, 2 or 1, with as many more batches a step.
    batch_size: Count | Auto = "auto"
    gradient_accumulation: Count = 1
    # "auto": 2e-4 for an adapter, 2e-5 for the whole model.
    learning_rate: Positive | Auto = "auto"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: Share = 0.05
    weight_decay: float = 0.0
    max_gradient_norm: Positive = 1.0
    # Validation every so many steps. "auto": ten times in the run, at least every epoch.
    evaluate_every: Count | Auto = "auto"
    # Stop after so many validations without a new minimum. 0: never.
    patience: Whole = 3
    # A checkpoint every so many steps, to resume from. "auto": at every validation.
    save_every: Count | Auto = "auto"
    log_every: Count | Auto = "auto"
    # "auto": the faster one, by a short measurement on this machine.
    precision: Precision | Auto = "auto"
    # CPU threads. "auto": the cores that this process may use.
    threads: Count | Auto = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # The share of the training rows to use. A larger share has all rows of a smaller one in it.
    rows_share: PartOfRows = 1.0
    # Rows of like length share a batch, so little of it is padding.
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    trackers: tuple[Tracker, ...] = ("tensorboard",)


class CriterionSettings(Section, frozen=True):
    """[evaluation.rubric.NAME]: what people rate answers by; see `evaluation.criteria`."""

    question: str = ""
    low: int = 1
    high: int = 5
    # What numbers of the scale mean, such as 1 = "wrong".
    anchors: dict[str, str] = {}


class OwnMetricSettings(Section, frozen=True):
    """[evaluation.metrics.NAME]: one of `function`, `pattern` and `schema`; see
    `evaluation.own_metrics`.
    """

    function: str = ""  # "module:function" of (prompt, wanted, answer), which gives a number
    pattern: str = ""  # a regular expression that is searched in answers
    schema: str = ""  # a file with the JSON schema that answers have to follow
    better: Literal["higher", "lower"] = "higher"
    share: bool = False  # the function says true or false


class JudgeSettings(Section, frozen=True):
    """[evaluation.judges.NAME]: a language model at an OpenAI-shaped endpoint that judges answers;
    see `evaluation.judges`.
    """

    url: str  # of the endpoint, as http://127.0.0.1:8000/v1
    model: str
    key_variable: str = ""  # the environment variable that has the key; "": none is sent
    criteria: tuple[str, ...] = ()  # of the rubric; empty: all of them
    pairs: bool = True  # also ask which of two answers is better, in both orders
    instructions: str = ""  # what else it should know, such as who is answered
    rows: Count = 50  # at most
    max_calls: Count = 500  # that are new; of what is more, whole rows are left out
    max_tokens: Count = 1024  # of a verdict, its reason included
    concurrency: Count = 4  # calls at once
    timeout_seconds: Positive = 60.0


Contender = Literal["examples", "retrieval", "tfidf"]


class EvaluationSettings(Section, frozen=True):
    """[evaluation]: what is measured on unseen rows. `require` are sentences such as ``accuracy -
    base >= 0.30``; see `evaluation.requirements`.

    An empty `labels` means: those that the rows bring.
    """

    max_rows: Whole = 200  # of the test split that are asked; 0: all
    # Of an answer. "auto": room for the longest that the data have, and a quarter more.
    max_tokens: Count | Auto = "auto"
    labels: tuple[str, ...] = ()
    confidence: Annotated[float, Meta(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Meta(ge=100)] = 2000
    seed: Whole = 0
    counterfactual_rows: Whole = 20  # rows that are asked again with a name or group swapped
    samples: Whole = 12  # answers side by side in the report
    concurrency: Count = 8  # requests at once
    general_text: str = ""  # a text file for forgetting, paragraphs apart; "": the shipped one
    # What the adapter is held against beside the base: examples in the base's prompt, training rows
    # retrieved into it, and for labels a classifier of words.
    contenders: tuple[Contender, ...] = ("examples", "retrieval", "tfidf")
    examples: Count = 4  # training rows in the prompts of the first two
    # More rows to measure on: folders of splits or of earlier runs, whose test rows are taken, and
    # files of rows. Each is a test set of its own, by the name of its folder or file.
    tests: tuple[str, ...] = ()
    # Files of rows by the name of a benchmark, each a test set of that name.
    benchmarks: dict[str, str] = {}
    # Metrics of one's own.
    metrics: dict[str, OwnMetricSettings] = {}
    # Language models that judge answers.
    judges: dict[str, JudgeSettings] = {}
    # What people rate answers by. Empty: accuracy, helpfulness and tone.
    rubric: dict[str, CriterionSettings] = {}
    require: tuple[str, ...] = (
        "loss - base <= 0",
        "loss - champion <= 0.05",
        "loss - first <= 0.05",
        "forgetting <= 0.3",
        "stop_rate >= 0.9",
    )


MergeDtype = Literal["bfloat16", "float16", "float32"]


class SamplingSettings(Section, frozen=True):
    """[publish.sampling]: the defaults for a request that does not set these."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET


class PublishSettings(Section, frozen=True):
    """[publish]: with an empty `adapter` the run ends with its report and publishes nothing."""

    adapter: str = ""  # acme/support
    promote: bool = False  # let it serve at once
    max_tokens_cap: Annotated[int, Meta(ge=1)] | None = None
    stop: tuple[str, ...] = ()
    sampling: SamplingSettings = SamplingSettings()
    reference_prompts: Annotated[int, Meta(ge=0, le=8)] = 4  # a server compares these; 0: none
    license: str = ""  # for the model card, as a hub names it: apache-2.0
    description: str = ""  # one sentence for the model card
    merge: bool = False  # make the merged model too
    merge_dtype: MergeDtype = "bfloat16"
    max_shard_size: str = "4GB"  # of the merged model's files


Price = Annotated[float, Meta(ge=0)]


class CostSettings(Section, frozen=True):
    """[cost]: prices, in `currency`. A price of 0 means that it is not known."""

    currency: str = "USD"
    machine_per_hour: Price = 0.0  # of what trains
    million_prompt_tokens: Price = 0.0  # of what serves
    million_answer_tokens: Price = 0.0
    requests_per_month: Annotated[int, Meta(ge=0)] = 10_000
    few_shot_examples: Annotated[int, Meta(ge=0)] = 8  # that a prompt would need instead
    retrieval_tokens: Annotated[int, Meta(ge=0)] = 1500  # of passages that a prompt would carry
    probe_steps: Annotated[int, Meta(ge=1)] = 3  # measured, after one to warm up
