"""Benchmarks: loragate beside others on one machine, in one run. `make help` lists the recipes.

`servers` starts each, `streams` is the client, `measures` says what is asked and written down,
`adapters` makes what all serve, `llama_cpp` builds llama.cpp's server, `processor` measures the
machine and `limits` what it allows, `comparison` is the table of many servers, `offline` asks
vLLM's own offline `LLM`. Each of the others measures one thing and prints a table: `serving`,
`rivals` and `gpu` speed, `direct` and `frontend` what the gateway costs, `swap` and `many_swaps`
what a swap does, `starvation` the fair queue, `clients` whether the load tests agree with vLLM's
own client, `train` training, `structure` the packages themselves.
"""
