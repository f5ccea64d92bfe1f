"""From examples in splits to the best adapter.

`plan`             run file and splits → rows, schedule, base model; every "auto" gets its value
  `encoding`       conversations → ids and labels, by the server's renderer
  `schedule`       how many steps, which rows when
`train`            plan → `RunResult`, through TRL's trainer
  `models`         base model and adapter on it
  `memory`, `machine`   what there is room for, and what works together
  `adapter_trainer`     TRL's trainer with our order, loss, validation and checkpoints
  `callbacks`      log, bar, trackers, best weights, Ctrl-C
  `checkpoints`    what a run goes on from
  `export`         what it leaves
"""
