"""What a run file may say, one table of it a module; `run_file` puts them together.

`section`     what every table is, and "auto"
`data`        [data]: which examples are learnt
`model`       [model]: from which weights training starts
`method`      [method]: which weights are learnt
`training`    [training]: how
`evaluation`  [evaluation]: what is measured afterwards, and what is good enough
`publish`     [publish]: whether and how the result becomes a version
`cost`        [cost]: prices
"""
