"""Grammars and schemas of structured output, checked and compiled in a process of their own."""
