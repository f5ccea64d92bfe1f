"""Is the new adapter better than what serves, on rows that nobody trained on?

`evaluator`        all of it, in order: `evaluate`; which systems are compared
`texts`            the unseen rows of a run, and general English
`losses`           how well each system predicts them, with transformers and PEFT
`served`           each system's answers, through a real server
`scores`, `metrics`, `statistics`  answers to numbers with intervals
`counterfactuals`  the same question from somebody else
`requirements`     sentences that must hold for `publish`, and the verdict
`evaluation`       the result as one value, and as JSON
`report`           the result as one HTML page
`rubric`           sheets for people to rate answers by, and their ratings
"""
