"""Publishes a run's adapter as a version, and merges versions.

`publishing`       the version: weights, manifest with lineage and contract, card, reference
`reference`        log-probabilities by which a server checks that it serves what was trained
`model_card`       README.md of an adapter or of a merged model
`merging`          base and adapter as one model, and the check that it computes the same
`merged_versions`  the merged model of a published version
"""
