"""The content of dataset.json, which is also what `python -m jobs prepare --json` prints."""

from typing import NotRequired, TypedDict


class SplitInfo(TypedDict):
    """What a split contains and what was skipped: counts by reason, and the `file:line` of the first cases."""

    rows: int
    tokens: int
    keyphrases: int
    parts: int
    skipped: dict[str, int]
    skipped_places: dict[str, list[str]]


class SourceInfo(TypedDict):
    """A labeled input file; `bytes` and `sha256` are of its decompressed content."""

    path: str
    format: str
    lines: int
    bytes: int
    sha256: str


class UnlabeledSourceInfo(TypedDict):
    """A file of unlabeled texts; `bytes` and `sha256` are of its decompressed content."""

    path: str
    format: str
    texts: int
    bytes: int
    sha256: str


class PretrainingTexts(TypedDict):
    """The texts that word vectors were trained on."""

    sources: list[UnlabeledSourceInfo]
    texts: int
    tokens: int
    skipped: dict[str, int]
    skipped_places: dict[str, list[str]]


class PretrainingInfo(PretrainingTexts):
    """How word vectors were trained: words less frequent than `frequency` have none."""

    frequency: int
    epochs: int
    seed: int


class DistilledInfo(TypedDict):
    """How word vectors were made with an encoder: from its location, for words of the training texts and of others.

    Attributes:
        encoder: location of the encoder or bundle.
        frequency: less frequent words of `texts` have none.
        texts: unlabeled; None where there were none.
    """

    encoder: str
    frequency: int
    texts: PretrainingTexts | None


class VectorsInfo(TypedDict):
    """The initial word vectors.

    Attributes:
        pretrained: where they were trained by `prepare`.
        distilled: where they were made with an encoder.
        path: where they were read from a file.
        skipped, skipped_places: the lines of that file that could not be read, as in `SplitInfo`.
        words_joined: words of the vocabulary that only the vectors contain.
        size: dimensions of a vector.
        words_covered: words of the vocabulary with a pretrained vector; the others are random.
        words: size of the vocabulary.
        sha256: digest of vectors.safetensors; absent in datasets of earlier versions.
    """

    pretrained: NotRequired[PretrainingInfo]
    distilled: NotRequired[DistilledInfo]
    path: NotRequired[str]
    skipped: NotRequired[dict[str, int]]
    skipped_places: NotRequired[dict[str, list[str]]]
    words_joined: int
    size: int
    words_covered: int
    words: int
    sha256: NotRequired[str]


class PrepareSettings(TypedDict):
    """The settings that decide the vocabulary and the rows, see `PrepareConfig`."""

    min_frequency: int
    max_words: int
    max_tokens: int


class DatasetInfo(TypedDict):
    """The content of dataset.json.

    Attributes:
        format_version: see `model.data.dataset.DATASET_FORMAT`.
        words: size of the vocabulary, special words included.
        splits: by name, in the order train, valid, test.
        vectors: None where a training draws its embedding at random.
        sources: the input files, by the split for which they were given.
        recipe: the settings.
        tokenizer_sha256: digest of tokenizer.json; absent in datasets of earlier versions.
        warnings: why the dataset may teach or measure badly; absent where nothing was found.
    """

    format_version: int
    words: int
    splits: dict[str, SplitInfo]
    vectors: VectorsInfo | None
    sources: dict[str, list[SourceInfo]]
    recipe: PrepareSettings
    tokenizer_sha256: NotRequired[str]
    warnings: NotRequired[list[str]]
