"""A version beside its merged model and the base, before any traffic: the same prompts, measured.

``prompts`` what is asked · ``asking`` a server's client · ``agreement`` do both say the same ·
``speed`` how fast · ``comparing`` one run · ``report`` and ``plots`` for people · ``own_server`` a
server for as long as a comparison takes. All of it asks a server over its public API and knows
nothing of engines.
"""
