"""Turn one GGUF file into a model directory: bf16 safetensors, tokenizer, chat template.

    python -m loragate.adapters.base_models.gguf MODEL.gguf DIRECTORY

Each finished step is one line on standard output. It is run as a process of its own by
`sources`: torch and its memory go away with it, and the libraries' own progress bars stay
out of the caller's terminal.
"""

import sys
from pathlib import Path

STEPS = ("read the weights", "write the weights", "write the tokenizer")


def convert(gguf_path: Path, directory: Path) -> None:
    """Write the model of `gguf_path` to `directory`; print each of `STEPS` when it is done."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent,
        gguf_file=gguf_path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    print(STEPS[0], flush=True)
    model.save_pretrained(directory)
    print(STEPS[1], flush=True)
    save_tokenizer(gguf_path, directory, model.config.max_position_embeddings)
    print(STEPS[2], flush=True)


def save_tokenizer(gguf_path: Path, directory: Path, context_length: int) -> None:
    """Write the tokenizer and the chat template of `gguf_path` to `directory`.

    Raises ValueError for a file whose split into words is not the SmolLM one.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    split = GGUFReader(gguf_path).fields["tokenizer.ggml.pre"].contents()
    if split != "smollm":
        raise ValueError(f"{gguf_path.name} splits words the {split!r} way; only 'smollm' is known")
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # transformers reads the vocabulary but not how words are split: it would take "  5" apart as
    # " ", " 5", where this model learnt "  ", "5".
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = context_length
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
