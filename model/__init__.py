"""The tagger, its data, its training and its use; torch and files, no Ray.

Read the rooms in this order:

    config, presets, storage, staging, shards, errors, aliases    used by all rooms
    data         a labeled text as tokens, labels and tensors
    prepare      labeled files -> a dataset directory
    network      token ids -> logits -> keyphrases
    training     logits -> loss -> steps -> metrics
    inference    a trained tagger in use: bundles, extraction, mistakes

Tensor shapes are written with these letters:

    B    texts of a batch
    T    tokens of its longest text: a padded batch is (B, T)
    N    tokens of all its texts, packed without padding
    W    tokens of a context window
    D    size of an embedding
    H    hidden size of a recurrent layer
    K    maximum length of a span, in tokens
"""
