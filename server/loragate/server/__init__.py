"""What is served: one base model and its adapters, over HTTP (`http`) and gRPC (`rpc`).

`app` builds everything; `gateway` is the only way to the engine; `docs/architecture.md` is the map.
"""
