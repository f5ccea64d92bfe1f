"""Any request that a client may send, for property tests."""

from hypothesis import strategies as st

from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    Options,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolCall,
    ToolChoice,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
DOUBLE = st.floats(allow_nan=False)
TOKEN_IDS = st.lists(INT32, max_size=3).map(tuple)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
TOOL_CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | TEXT
    | st.integers(-(2**53), 2**53)
    | DOUBLE.filter(lambda number: not number.is_integer() and abs(number) != float("inf")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
STRUCTURED = st.one_of(
    st.just(StructuredOutput("json_object")),
    st.builds(
        StructuredOutput,
        st.sampled_from(["json_schema", "regex", "grammar", "structural_tag"]),
        TEXT,
    ),
    st.builds(StructuredOutput, st.just("choice"), choices=TEXTS),
)
SAMPLING = st.builds(
    SamplingParams,
    n=INT32,
    max_tokens=st.none() | INT32,
    min_tokens=INT32,
    temperature=st.none() | DOUBLE,
    top_p=st.none() | DOUBLE,
    top_k=st.none() | INT32,
    min_p=st.none() | DOUBLE,
    presence_penalty=st.none() | DOUBLE,
    frequency_penalty=st.none() | DOUBLE,
    repetition_penalty=st.none() | DOUBLE,
    seed=st.none() | INT64,
    stop=TEXTS,
    stop_token_ids=TOKEN_IDS,
    include_stop_str_in_output=st.booleans(),
    ignore_eos=st.booleans(),
    skip_special_tokens=st.booleans(),
    spaces_between_special_tokens=st.booleans(),
    logit_bias=st.dictionaries(INT32, DOUBLE, max_size=2),
    allowed_token_ids=TOKEN_IDS,
    bad_words=TEXTS,
    logprobs=st.none() | INT32,
    logprob_token_ids=TOKEN_IDS,
    prompt_logprobs=st.none() | INT32,
    structured=st.none() | STRUCTURED,
)
OPTIONS = st.builds(
    Options,
    stream=st.booleans(),
    include_usage=st.booleans(),
    continuous_usage=st.booleans(),
    user=st.none() | TEXT,
    cache_salt=TEXT,
    truncate_prompt_tokens=st.none() | INT32,
    truncation_side=st.sampled_from(["left", "right"]),
    return_token_ids=st.booleans(),
    return_tokens_as_token_ids=st.booleans(),
)
MESSAGES = st.builds(
    Message,
    role=TEXT,
    content=st.none() | TEXT,
    name=st.none() | TEXT,
    tool_calls=TOOL_CALLS,
    tool_call_id=st.none() | TEXT,
    reasoning=st.none() | TEXT,
)
TOOLS = st.builds(
    Tool,
    name=TEXT,
    description=TEXT,
    parameters=TEXT.filter(bool),
    strict=st.booleans(),
)
TOOL_CHOICES = st.one_of(
    st.builds(ToolChoice, st.sampled_from(["auto", "none", "required"])),
    st.builds(ToolChoice, st.just("named"), TEXT),
)
CHATS = st.builds(
    ChatRequest,
    model=TEXT,
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    sampling=SAMPLING,
    options=OPTIONS,
    tools=st.lists(TOOLS, max_size=2).map(tuple),
    tool_choice=st.none() | TOOL_CHOICES,
    parallel_tool_calls=st.booleans(),
    add_generation_prompt=st.booleans(),
    continue_final_message=st.booleans(),
    add_special_tokens=st.booleans(),
    template_kwargs=st.dictionaries(TEXT, JSON_VALUES, max_size=3),
    include_reasoning=st.booleans(),
    echo=st.booleans(),
)
COMPLETIONS = st.builds(
    CompletionRequest,
    model=TEXT,
    prompts=st.lists(TEXT | TOKEN_IDS, max_size=3).map(tuple),
    # Unset means 16 there, so "as many as fit" cannot be said, as with OpenAI.
    sampling=SAMPLING.filter(lambda sampling: sampling.max_tokens is not None),
    options=OPTIONS,
    echo=st.booleans(),
    add_special_tokens=st.booleans(),
)
