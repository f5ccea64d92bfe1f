"""Raw rows to splits that a run can trust: read, clean, judge, split, check, report.

`example`        one conversation to learn from, and the file of them between all steps
`settings`       what can be chosen, with defaults
`reading`        JSONL and CSV to rows, each with its place; what cannot be read
`formats`        the four forms of rows, each turned into an `Example`
`cleaning`       the rules in their order, and the account of every row that goes
`mending`        mojibake, odd characters, whitespace
`languages`      which language a text is in
`personal_data`  found by shape, believed by checksum, masked
`likeness`       what of a row is compared, and how alike two texts are
`duplicates`     exact and near duplicates, conflicts
`judging`        volume, labels, variety, groups of people, tokens: figures and sentences
`topics`         what the rows are about
`demographics`   who is named, and what goes together with it
`splitting`      train, validation and test by clusters of what belongs together
`leaks`          the proof, by other means, that no split holds what another holds
`split_folder`   the splits on disk, with `data.json`
`report`, `plots`  one HTML page
`preparing`      the whole way, and the steps of it that stand alone

It knows nothing of models but the renderer that counts tokens.
"""
