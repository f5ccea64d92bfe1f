"""The chat formats of model families: templates, control tokens, and what ends an answer.

Templates are TRL's copies of the models' own where it has one; the others are written here in the
form that the models' makers describe.
"""

from dataclasses import dataclass
from pathlib import Path

import trl
from transformers import PreTrainedTokenizerFast

from loragate.adapters.rendering.renderer import Renderer
from support.models.tokenizers import byte_tokenizer

_TRL = Path(trl.__file__).parent / "chat_templates"

LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system is defined %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == (messages | selectattr('role', 'equalto', 'user') | list"
    " | length - 1) * 2 %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}{{ m.content }}"
    "[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS]["
    "{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{{ dict(call.function, id=call.id) | tojson }}{{ ', ' if not loop.last }}{% endfor %}]"
    "{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}"
    "{% endif %}"
    "[TOOL_RESULTS]{{ {'content': m.content, 'call_id': m.tool_call_id} | tojson }}"
    "[/TOOL_RESULTS]{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
SMOLLM_2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are SmolLM.<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Takes a word of the system message for a switch, and reasoning as a part of the content alone.
SMOLLM_3 = (
    "{% set mode = '/think' if enable_thinking | default(true) else '/no_think' %}"
    "{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% if '/no_think' in messages[0].content %}{% set mode = '/no_think' %}{% endif %}"
    "{% set system = messages[0].content.replace('/no_think', '').rstrip() %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "<|im_start|>system\n## Metadata\nReasoning Mode: {{ mode }}\n{{ system }}\n"
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>"
    "{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ '<think>\n\n</think>\n' if mode == '/no_think' }}"
    "{{ m.content.lstrip('\n') }}<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n' if mode == '/no_think' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """`ends` are the texts of the tokens at which the model's generation_config.json ends answers;
    `end` is that of the one that its answers end with, `call_end` that of its calls of tools.
    `before` is what the model writes of an answer before its text, `space` what stands behind it.
    """

    name: str
    template: str
    control: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]
    end: str
    call_end: str = ""
    before: str = ""
    space: str = ""
    bos: str = "<s>"
    words: tuple[str, ...] = ()  # tokens that are not flagged as special
    variables: tuple[tuple[str, object], ...] = ()

    @property
    def title(self) -> str:
        """With the variables of the template."""
        said = ", ".join(f"{name}={value}" for name, value in self.variables)
        return f"{self.name} ({said})" if said else self.name

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = byte_tokenizer(self.template)
        tokenizer.add_tokens(list(dict.fromkeys((*self.control, self.eos, self.bos))), True)
        tokenizer.add_tokens(list(self.words))
        tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token = self.eos, self.bos, self.eos
        return tokenizer

    def renderer(self) -> Renderer:
        tokenizer = self.tokenizer()
        vocabulary = tokenizer.get_vocab()
        return Renderer(
            tokenizer,
            variables=dict(self.variables),
            end_ids=[vocabulary[end] for end in self.ends],
        )


def _trl(name: str) -> str:
    return (_TRL / f"{name}.jinja").read_text()


_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_TOOL_WORDS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_THINK = ("<think>", "</think>")
_LLAMA_3 = (
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
_PHI_3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_DEEPSEEK = (
    *(
        "<\uff5cUser\uff5c>",
        "<\uff5cAssistant\uff5c>",
        "<\uff5ctool▁calls▁begin\uff5c>",
        "<\uff5ctool▁call▁begin\uff5c>",
    ),
    *(
        "<\uff5ctool▁sep\uff5c>",
        "<\uff5ctool▁call▁end\uff5c>",
        "<\uff5ctool▁calls▁end\uff5c>",
        "<\uff5ctool▁outputs▁begin\uff5c>",
    ),
    *(
        "<\uff5ctool▁output▁begin\uff5c>",
        "<\uff5ctool▁output▁end\uff5c>",
        "<\uff5ctool▁outputs▁end\uff5c>",
    ),
)
_END = "<\uff5cend▁of▁sentence\uff5c>"
_GPT_OSS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|endoftext|>")
_GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

FAMILIES = (
    Family("Llama 2", LLAMA_2, (), "</s>", ("</s>",), "</s>", before=" ", space=" "),
    Family("Llama 3", _trl("llama3"), _LLAMA_3, "<|eot_id|>",
           ("<|end_of_text|>", "<|eot_id|>"), "<|eot_id|>"),
    Family("Llama 3.1", _trl("llama3_1"), _LLAMA_3, "<|eot_id|>",
           ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "<|eot_id|>"),
    Family("Mistral", MISTRAL,
           ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), "</s>", ("</s>",), "</s>"),
    Family("Qwen2.5", _trl("qwen2_5"), _CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
           "<|im_end|>", words=_TOOL_WORDS),
    Family("Qwen3", _trl("qwen3"), _CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
           "<|im_end|>", before=_EMPTY_THOUGHT, words=(*_TOOL_WORDS, *_THINK)),
    Family("Qwen3", _trl("qwen3"), _CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
           "<|im_end|>", words=(*_TOOL_WORDS, *_THINK), variables=(("enable_thinking", False),)),
    Family("Gemma 2", _trl("gemma"), _GEMMA, "<eos>", ("<eos>", "<end_of_turn>"),
           "<end_of_turn>", bos="<bos>"),
    Family("Gemma 3", _trl("gemma3"), _GEMMA, "<eos>", ("<eos>", "<end_of_turn>"),
           "<end_of_turn>", bos="<bos>"),
    Family("Phi-3", _trl("phi3"), _PHI_3, "<|endoftext|>",
           ("<|endoftext|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    Family("Phi-4", PHI_4, (*_CHATML, "<|im_sep|>"), "<|im_end|>", ("<|endoftext|>",),
           "<|im_end|>"),
    Family("SmolLM2", SMOLLM_2, _CHATML, "<|im_end|>", ("<|im_end|>",), "<|im_end|>"),
    Family("SmolLM3", SMOLLM_3, _CHATML, "<|im_end|>", ("<|im_end|>",), "<|im_end|>",
           words=_THINK),
    Family("SmolLM3", SMOLLM_3, _CHATML, "<|im_end|>", ("<|im_end|>",), "<|im_end|>",
           words=_THINK, variables=(("enable_thinking", False),)),
    Family("GLM-4.5", _trl("glm4moe"), _GLM, "<|endoftext|>",
           ("<|endoftext|>", "<|user|>", "<|observation|>"), "<|user|>", "<|observation|>",
           before="\n<think></think>\n", words=(*_TOOL_WORDS, *_THINK)),
    Family("GLM-4.5", _trl("glm4moe"), _GLM, "<|endoftext|>",
           ("<|endoftext|>", "<|user|>", "<|observation|>"), "<|user|>", "<|observation|>",
           before="\n", words=(*_TOOL_WORDS, *_THINK), variables=(("enable_thinking", False),)),
    Family("gpt-oss", _trl("gptoss"), _GPT_OSS, "<|return|>",
           ("<|return|>", "<|endoftext|>", "<|call|>"), "<|return|>", "<|call|>",
           before="<|channel|>final<|message|>"),
    Family("DeepSeek-V3", _trl("deepseekv3"), _DEEPSEEK, _END, (_END,), _END,
           before="\n</think>\n\n", bos="<\uff5cbegin▁of▁sentence\uff5c>", words=_THINK),
    Family("DeepSeek-R1 distilled", _trl("deepseek_r1_distill"), _DEEPSEEK, _END, (_END,), _END,
           before="\n</think>\n\n", bos="<\uff5cbegin▁of▁sentence\uff5c>", words=_THINK),
)  # fmt: skip
