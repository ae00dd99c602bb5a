import numpy as np
import pytest

from model.config import TaggerConfig
from model.data.dataset import Dataset, split_from_examples
from model.data.examples import Example
from model.data.features import NUM_FEATURES, ROWS, WordFeatures, _with_neighbors, sign_features, word_features
from model.inference.extractor import Extractor
from model.network.tagger import new_tagger


@pytest.mark.parametrize(
    ("word", "features"),
    [
        ("Federer's", ("f", "fed", "r's", "Xxxxx'x")),
        ("GPT4", ("g", "gpt", "pt4", "XXX0")),
        ("123456", ("1", "123", "456", "0000")),
        ("a", ("a", "a", "a", "x")),
        ("ÉTÉ", ("é", "été", "été", "XXX")),
        ("#!", ("#", "#!", "#!", "#!")),
    ],
)
def test_word_features(word: str, features: tuple[str, ...]):
    assert word_features(word) == features


def test_the_features_of_a_sign_are_those_with_its_neighbors():
    assert sign_features("は", "学", "ぶ") == ("学", "は学", "学ぶ", "HIR CJK HIR")
    assert sign_features("Python", "を", "") == ("を", "honを", "を", "LAT HIR ")


def test_only_signs_beside_signs_have_neighbors():
    text, spans = "学ぶPython 東 京都", [(0, 1), (1, 2), (2, 8), (9, 10), (11, 12), (12, 13)]
    starts, ends = (list(side) for side in zip(*spans, strict=True))
    keys = _with_neighbors([text[start:end] for start, end in spans], starts, ends)
    assert keys == [("", "学", "ぶ"), ("学", "ぶ", "Python"), "Python", "東", ("", "京", "都"), ("京", "都", "")]


def rows(text: str, *spans: tuple[int, int]) -> np.ndarray:
    starts, ends = np.array(spans, np.int32).T
    return WordFeatures()([text], starts, ends, np.array([0, len(spans)]))


def test_words_that_are_written_alike_share_rows():
    one, other = rows("Walking Talking", (0, 7), (8, 15))
    assert (one == other).tolist() == [False, False, True, True, True, False]


def test_a_word_is_counted_in_its_own_text_whatever_its_case():
    starts, ends = np.array([0, 2, 4, 0], np.int32), np.array([1, 3, 5, 1], np.int32)
    found = WordFeatures()(["a b A", "a"], starts, ends, np.array([0, 3, 4]))
    assert (found[:, 4] - found[1, 4]).tolist() == [1, 0, 1, 0]  # two of a, one of b; one in the other text


def test_position_bins_grow():
    count = 100
    starts = np.arange(0, 2 * count, 2, dtype=np.int32)
    places = WordFeatures()(["a " * count], starts, starts + 1, np.array([0, count]))[:, 5].astype(int)
    assert (np.diff(places) >= 0).all() and len(set(places[:8].tolist())) == 8
    assert places[10] > places[8] == places[9] > places[7] and 20 <= len(set(places.tolist())) <= 30


def test_each_feature_has_its_own_rows_and_none_is_the_padding():
    found = rows("aaa b", (0, 3), (4, 5))
    assert found.min() > 0 and found.max() < ROWS and found.shape == (2, NUM_FEATURES)
    assert len(set(found[0].tolist())) == NUM_FEATURES


def test_rows_do_not_change_from_run_to_run():
    assert rows("Roger", (0, 5)).tolist() == [[3998, 7305, 12076, 12973, 16386, 20481]]


def test_a_dataset_and_examples_in_memory_have_the_same_word_features(small_dataset: str):
    data = Dataset(small_dataset)
    split = data.load("valid", word_features=True)
    assert split.word_features is not None and len(split.word_features) == len(split.ids)
    first, text = slice(0, int(split.begins[1])), next(data.texts("valid"))
    table = data._table("valid", ["starts", "ends"])
    offsets = list(zip(table["starts"][0].as_py(), table["ends"][0].as_py(), strict=True))
    example = Example(text.text, split.ids[first].tolist(), offsets, [], "here")
    assert np.array_equal(split_from_examples([example], word_features=True).word_features, split.word_features[first])
    assert data.load("valid").word_features is None


def test_an_extractor_sees_how_a_word_is_written(small_dataset: str):
    data = Dataset(small_dataset)
    config = TaggerConfig(embedding_dim=4, keyword_hidden=4, keyphrase_hidden=4, word_feature_dim=3, decoding="spans")
    tagger = new_tagger(config, data.info["words"], seed=0)
    tagger.threshold.fill_(0.001)
    extractor = Extractor(tagger, data.tokenizer())
    one, other = (extractor(f"look at {word} now") for word in ("Zzyzxq", "9999"))  # both unknown words
    assert [each.score for each in one] != [each.score for each in other]
