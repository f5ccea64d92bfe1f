"""Benchmarks: loragate beside stock vLLM on one machine, in one run. `make help` lists the recipes.

`servers` starts either, `streams` is the client, `adapters` makes what both serve, `offline` asks
vLLM's own offline `LLM`. Each of the others measures one thing and prints a table: `serving` and
`gpu` speed, `direct` and `frontend` what the gateway costs, `swap` and `many_swaps` what a swap
does, `starvation` the fair queue, `clients` whether the load tests agree with vLLM's own client,
`train` training, `structure` the packages themselves.
"""
