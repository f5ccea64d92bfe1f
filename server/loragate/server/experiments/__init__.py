"""Rollouts and experiments: who gets which arm, and what may be concluded.

Pure, with no clock, database or task, and times passed in:

- `assignment`: a request's unit, its bucket, its arm.
- `metrics`: what can be measured, and within which limits.
- `tally`: exposures and outcomes counted by unit, and the samples that they make.
- `confidence_sequences`: limits that hold at every look, for means, shares and quantiles.
- `non_inferiority`, `superiority`: two arms compared: a difference, a ratio.
- `sample_ratio`, `sample_sizes`: whether the arms filled as they should, and how much is missing.
- `gates`: `error_rate<1%`, `ttft_p95<1.2x`, `rating>=champion-0.1`: read and answered.
- `plan_bounds`: what may be asked for, whoever asks.
- `plans`: what was declared beforehand, and its form in the registry.
- `verdict`: all gates and checks in one answer, with its reason.
- `rollout_plan`: the steps of a rollout as a state machine.
- `running`: a rollout or an experiment under way: gives out arms, counts, is looked at.
- `report`, `plots`: an experiment on a terminal and as one page of HTML.

In the server:

- `trial_router`: where requests meet trials: an arm for each, and what becomes of it.
- `runner`: looks at each trial about once a second, and does what follows.
- `observation_log`: writes exposures and outcomes in batches.
- `feedback`: what people say of an answer, kept once.
- `service`: what operators begin, change and read.
"""
