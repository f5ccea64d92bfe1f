"""Compares the new adapter with the base and the champion, on rows that none was trained on.

`evaluator`        the whole evaluation, step by step, and the systems that are compared
`losses`           losses of the rows and of general English, with transformers and PEFT
`served`           each system's answers, through a real server
`scores`, `metrics`, `statistics`  metrics of the answers, their names, their intervals
`counterfactuals`  whether answers change with the writer's group
`requirements`     what must hold before a run is published
`evaluation`       the result as one value, and as JSON
`report`           the result as one HTML page
`rubric`           sheets on which people rate answers
"""
