"""What exists: versions, aliases, artifacts, the publish check, prompt rendering. Never the server.

- `registry`: what is recorded. `registry.Registry` is the one class that callers use;
  `snapshot` is the same in memory, renewed by what changed, for the path of requests.
- `store`: artifacts on disk, by digest. Which of them may go is `registry.needs`' to say.
- `format`: what an adapter's folder is; `publish_check`, whether it could be served;
  `reference`, what it said where it was trained.
- `importing`: makes of what any trainer has written a folder in that format.
- `base_models`: the base model on disk, made or found.
- `rendering`: messages to token ids, the same for serving and for training. `templates` are those
  that adapters bring, rendered in child processes.
- `child_process`: processes for work whose cost others decide: bounded, killed and replaced.
- `settings`: those of `loragate.toml` that the server and the trainer share.
- `names`: the grammar of names; AdapterName and AdapterVersion.
- `home`: the paths under `LORAGATE_HOME`. `temporary_folders`: folders that a later sweep removes.
- `errors`: everything that is refused, one class per reason.
"""
