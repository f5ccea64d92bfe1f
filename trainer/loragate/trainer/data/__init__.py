"""Raw rows to splits that a run can trust: read, clean, measure, split, check, report.

`example`        one conversation to learn from, and the file of them between all steps
`settings`       what can be chosen, with defaults
`reading`        JSONL and CSV to rows, each with its place; the four forms turned into examples
`cleaning`       text normalised, rules in their order, the account of every row that goes
`personal_data`  found by shape, believed by checksum, masked
`similarity`     how similar two texts are; exact and near duplicates, conflicts
`quality`        volume, labels, topics, variety, tokens: figures and sentences
`demographics`   which groups of people are named, and what goes together with that
`splits`         train, validation and test; the proof that nothing leaks; the folder on disk
`report`         one HTML page with its plots
`preparing`      all of it in order, and the steps that stand alone

It knows nothing of models but the renderer that counts tokens.
"""
