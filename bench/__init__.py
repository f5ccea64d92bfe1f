"""Benchmarks: loragate beside stock vLLM on one machine, in one run.

`servers` starts either, `streams` is the client, `adapters` makes what both serve; `serving` and
`swap` measure and print tables. Run them by `make bench` and `make bench-swap`.
"""
