"""The built-in corpora of scripts without spaces."""

from pathlib import Path

import pytest
from helpers import SMALL, alone

from jobs.corpora.generated import GeneratedText, prepare_corpus, write_corpus
from jobs.corpora.spaceless import LANGUAGES, generate
from model.config import make_config
from model.data.characters import is_spaceless
from model.data.dataset import Dataset
from model.presets import preset_values


def keyphrases(texts: list[GeneratedText]) -> list[str]:
    return [each.text[start:end] for each in texts for start, end in each.spans]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_corpus_has_its_shape(language: str):
    corpus = generate(language, 2000)
    assert {split: len(texts) for split, texts in corpus.items()} == {"train": 1400, "valid": 200, "test": 400}
    texts = [each for split in corpus.values() for each in split]
    assert len({each.text for each in texts}) == 2000 and all(is_spaceless(each.text) for each in texts)
    assert all(1 <= len(each.spans) <= 2 and each.spans == sorted(each.spans) for each in texts)
    known = set(keyphrases(corpus["train"]))
    wanted = keyphrases(corpus["test"])
    assert sum(phrase not in known for phrase in wanted) > 0.2 * len(wanted)
    # Names of asides are spelled as keyphrases are, so that only the words beside them decide.
    elsewhere = sum(each.text.count(phrase) for each in texts for phrase in known) - len(keyphrases(texts))
    assert elsewhere > 0.1 * len(texts)
    assert generate(language, 50, seed=1) == generate(language, 50, seed=1) != generate(language, 50, seed=2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_keyphrases_are_whole_words(language: str, tmp_path: Path):
    data = prepare_corpus(write_corpus(tmp_path / "corpus", generate(language, 200)), tmp_path / "data")
    assert not any(split["skipped"] for split in Dataset(data).info["splits"].values())


def test_a_tagger_learns(tmp_path: Path):
    data = prepare_corpus(write_corpus(tmp_path / "corpus", generate("zh", 500)), tmp_path / "data")
    tree = preset_values("best") | {"data": data}
    tree["tagger"] |= SMALL | {"word_feature_dim": 16, "rare_word_dropout": 0.0}
    tree["training"] = {"epochs": 3, "lr": 0.02, "global_batch_size": 16}
    training = alone(make_config(tree))
    assert training.history[-1]["valid/keyphrase_f1"] > 0.5
