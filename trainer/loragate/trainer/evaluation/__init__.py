"""Is the new adapter better than what serves, on rows that nobody trained on?

`evaluator`        all of it, in order: `evaluate`
`contenders`       who is compared: base, champion, new
`served`           their answers, through a real server
`losses`           their loss on wanted answers and on general text, with transformers and PEFT
`answers`, `scores`, `statistics`, `metrics`  answers to numbers with intervals
`counterfactuals`  the same question from somebody else
`requirements`     sentences that must hold for `publish`, and the verdict
`evaluation`       the result as one value, and as JSON
`report`           the result as one HTML page
`rubric`           sheets for people to judge answers by, and their judgements
"""
