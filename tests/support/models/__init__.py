"""Small base models, tokenizers and adapters."""
