"""How an adapter is made. Empty so far: `examples/adapters/train.py` trains the examples."""
