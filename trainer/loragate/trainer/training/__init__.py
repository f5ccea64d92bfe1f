"""From examples in splits to the best adapter: the whole of `loragate train` but its ends.

`preparing`         run file → rows, plan, base model: nothing left to decide
  `resolve`         "auto" → values        `origin`   the version to go on from
  `rows`            conversations → ids and labels, by the server's renderer
  `plan`, `order`   how many steps, which rows when
`train`             prepared run → `RunResult`, through TRL's trainer
  `models`          base model and adapter on it     `memory`, `machine`   what there is room for
  `adapter_trainer` TRL's trainer with our order, validation and checkpoints
  `supervised_head`, `attention`           what is computed otherwise on a CPU
  `callbacks`   log, bar, best weights, Ctrl-C
  `checkpoints`, `journal`                 what a run goes on from
  `verdict`, `curve`, `finished`, `receipts`             what it ends with
`sweep`             several runs and one table
"""
