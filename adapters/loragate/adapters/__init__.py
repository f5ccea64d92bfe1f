"""What exists: versions, aliases, artifacts, the publish gate, prompt rendering. Never the server.

Names and values
    `names`               the grammar; AdapterName and AdapterVersion
    `states`              the states of a version, and the one table of moves between them
    `manifest`            what a version says about itself, and the contract that rolls back with it
    `records`             what the registry answers with
    `listings`            one adapter as it stands, and what a selector means in it
    `snapshot`            the registry at one moment, in memory, and the watcher that keeps it fresh
    `errors`              everything that is refused, one class per reason

Publishing
    `adapter_files`       the files of a folder, and whether they can be read
    `safetensors_header`  the header of its weights, without loading them
    `gate`                whether they can be served, made of
    `peft_config`, `peft_features`  the configuration, and what of PEFT is not served
    `lora_tensors`, `tensor_values`  the pairs of LoRA matrices, and their numbers
    `base_profile`        what an adapter must fit
    `reference`           what it said where it was trained, for the gate in the engine
    `store`               artifacts on disk, by digest, and `needs`, which of them may go

The registry
    `registry`            Registry: the one class that callers use, made of
    `tenancy`             tenants and keys (`api_keys` makes and hashes them),
    `catalog`             adapters, their versions and artifacts,
    `aliases`             what each alias is to mean, and what serves by it,
    `transitions`         versions moving from state to state,
    `pins`                versions that are to stay in the engine,
    `merges`, `merged_serving`  merged models (`merged_files`), and which are to be served
                          (`merged_states`),
    `trials`, `observations`  rollouts and experiments (`trial_records`), and what they saw, and
    `ledger`              usage
    `snapshot_reader`     a snapshot from the rows that changed since the one before
    `rows`, `audit_log`   finding rows by name; recording changes
    `database`            the connection, its transactions and its migration
    `tables`, `migrations`  the schema and the way to it
    `home`                where all of it lies

The base model and its prompts
    `base_model`          the base model on disk (`model_sources`, `model_files`, `gguf_conversion`)
    `rendering`           messages to token ids, the same for serving and for training
                          (`template_time` bounds a trusted template's time)
    `templates`           the chat templates that adapters bring, rendered apart (`template_child`)

Work whose cost others decide
    `child_process`       processes for it that are bounded, killed and replaced
    `child_loop`          what runs in them
"""
