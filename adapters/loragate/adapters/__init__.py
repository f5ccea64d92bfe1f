"""What exists: versions, aliases, artifacts, the publish gate, prompt rendering. Never the server.

Names and values
    `names`               the grammar; AdapterName and AdapterVersion
    `manifest`            what a version says about itself, and the contract that rolls back with it
    `records`             what the registry answers with
    `snapshot`            the registry at one moment, in memory, and the watcher that keeps it fresh
    `errors`              everything that is refused, one class per reason

Publishing
    `adapter_files`       the static check of a folder
    `safetensors_header`  the header of its weights, without loading them
    `store`               artifacts on disk, by digest

The registry
    `registry`            Registry: the one class that callers use, made of
    `tenancy`             tenants and keys (`api_keys` makes and hashes them),
    `catalog`             adapters, versions and aliases, and
    `ledger`              usage
    `rows`, `audit_log`   finding rows by name; recording changes
    `database`            the connection, its transactions and its migration
    `tables`, `migrations`  the schema and the way to it
    `home`                where all of it lies

The base model and its prompts
    `base_model`          the base model on disk (`model_sources`, `model_files`, `gguf_conversion`)
    `rendering`           messages to token ids, the same for serving and for training
"""
