"""Prepares training data: reads, cleans, measures and splits raw rows, and reports on them.

`example`        one conversation to learn from, and the file format of examples
`settings`       the settings of all steps, with their defaults
`files`          JSON, CSV and Parquet files, to rows of fields
`reading`        rows of fields to examples, each with its file and line
`cleaning`       normalises text and drops rows by rules; each dropped row is recorded
`personal_data`  found by pattern and checksum, and masked
`similarity`     the similarity of two texts; exact and near duplicates, conflicts
`pieces`         sets of character pieces of many texts, and which are near
`seen`           digests of the rows that a version was trained on
`quality`        findings on volume, labels, topics, variety, groups of people, tokens
`relevance`      rows compared with real questions
`demographics`   which groups of people are named, and what is associated with that
`splits`         train, validation and test; the check for leaks; the folder on disk
`report`         one HTML page with its plots
`preparing`      the steps in order, and those that are commands of their own

No model is loaded; the renderer counts tokens.
"""
