"""Trains an adapter, or a whole model, on the examples of a folder of splits.

`plan`             run file and splits → rows, schedule, base model; every "auto" gets its value
  `encoding`       conversations → ids and labels, by the server's renderer
  `schedule`       how many steps, and the rows of each
`train`            plan → `RunResult`, through TRL's trainer
  `models`         loading the base model, adding or loading an adapter
  `memory`, `machine`   estimated memory; cores, devices and processes
  `adapter_trainer`     TRL's trainer with a fixed order, its own loss, validation and checkpoints
  `callbacks`      log, progress bar, trackers, best weights, stopping
  `checkpoints`    what a run is resumed from
  `export`         the best weights and the result
"""
