"""How much of each thing one request may bring, said once for both transports.

A count is checked before anything is made of what is counted, so that a request of megabytes costs
no more than to look at its lengths. What the model or the configuration bounds (tokens of a prompt,
answers, alternatives) is checked later, by `validation` and `prompting`.
"""

from collections.abc import Iterable

from loragate.server.errors import InvalidRequest

MOST_MESSAGES = 2048
MOST_CONTENT_PARTS = 2048  # of one message
MOST_TOOL_CALLS = 128  # of one message
MOST_TOOLS = 128
MOST_PROMPTS = 2048
MOST_PROMPT_TOKENS = 2**20  # of all prompts together that come as token ids
MOST_STOPS = 64
MOST_STOP_TOKENS = 1024
MOST_BAD_WORDS = 512
MOST_LOGIT_BIASES = 4096
MOST_ALLOWED_TOKENS = 2**19  # more than any vocabulary has
MOST_LOGPROB_TOKENS = 128  # each is scored at every step; the engine has room for as many
MOST_CHOICES_OF_TEXT = 8192  # grammars.bounds has a lower one, of what a grammar can hold
MOST_NAME_CHARACTERS = 256  # of a model, a role, a function
# Stop texts are looked for at every step, bad words made into tokens by the engine: both bounded as
# a whole, in characters.
MOST_SHORT_TEXT = 16_384

# Of one JSON text: lists and objects, strings (names of fields too), and values of any kind. The
# last is the number of token ids that a body has room for.
MOST_JSON_CONTAINERS = 32_768
MOST_JSON_STRINGS = 131_072
MOST_JSON_VALUES = 2**20
MOST_JSON_DEPTH = 100

# Values in a JSON text inside of a request, such as a schema or the arguments of a call.
MOST_INNER_VALUES = 131_072

# Of one gRPC message: its fields, those of the messages in it included.
MOST_WIRE_FIELDS = 65_536

# A message of more bytes than this, or a prompt of more characters, is read, checked and tokenized
# in a thread; below, which is about a millisecond's work, at once on the event loop.
SMALL_MESSAGE = 8192
SMALL_PROMPT = 4096
SMALL_SCORES = 256  # tokens with log-probabilities, in one piece of an answer
# Log-probabilities, alternatives included, of an answer in one piece: 30 MB of JSON.
MOST_ANSWER_SCORES = 262_144


def check_count(param: str, count: int, most: int) -> None:
    """Raises InvalidRequest where `param` has more entries than one request may have."""
    if count > most:
        raise InvalidRequest(
            f"{param} has {count} entries, and one request may have {most}; send fewer.",
            param=param,
        )


def check_characters(param: str, texts: Iterable[str], most: int) -> None:
    """Raises InvalidRequest where `texts` are longer than `most` characters together."""
    length = sum(map(len, texts))
    if length > most:
        raise InvalidRequest(
            f"{param} has {length} characters, and may have {most}; shorten it.", param=param
        )
