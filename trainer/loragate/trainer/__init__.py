"""How an adapter is made: data, training, evaluation, merging, publishing; see docs/training.md."""
