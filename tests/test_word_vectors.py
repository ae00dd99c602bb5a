"""Static word vectors made with an encoder, or with that of a bundle."""

from pathlib import Path

import numpy as np
import pytest
from encoders import tiny_encoder
from helpers import call, last_json, refused

from model.config import make_config
from model.data.dataset import Dataset
from model.distillation.word_vectors import WordEncoder
from model.inference.bundle import save_bundle
from model.network.encoder_files import load_encoder
from model.network.tagger import new_tagger
from model.prepare.word2vec import frequent_words
from model.readers.readers import unlabeled_inputs
from model.training.metrics import summarize

WORDS = "rain storm leeds closes schools in york <url> storms today a herons match 東京".split()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def test_vectors_are_the_principal_components_of_the_words_states(bert: str):
    """Reference: transformers reads each word alone, and numpy's singular value decomposition."""
    transformers = pytest.importorskip("transformers")
    files, vectors = load_encoder(bert), WordEncoder(bert)(WORDS, 6)
    model, subwords = transformers.AutoModel.from_pretrained(bert).eval(), files.subwords()
    states = []
    for word in WORDS:
        found = subwords([word], np.zeros(1, np.int32), np.array([len(word)], np.int32), np.array([0, 1]))
        ids = [*subwords.layout.prefix, *found.ids.tolist(), *subwords.layout.suffix]
        inputs = transformers.BatchEncoding({"input_ids": [ids]}, tensor_type="pt")
        states.append(model(**inputs).last_hidden_state[0, 1:-1].mean(0).detach().numpy())
    centered = np.stack(states) - np.mean(states, 0)
    components = np.linalg.svd(centered, full_matrices=False)[2][:6]
    wanted = centered @ components.T
    wanted *= 0.1 / wanted.std()
    assert vectors.vectors.shape == (len(WORDS), 6) and vectors.vectors.std() == pytest.approx(0.1, rel=1e-4)
    signs = np.sign((wanted * vectors.vectors).sum(0))
    assert np.allclose(wanted * signs, vectors.vectors, atol=2e-3)
    assert np.array_equal(vectors["leeds"], vectors.vectors[2]) and len(vectors) == len(WORDS)
    assert np.array_equal(WordEncoder(bert)(WORDS, 6).vectors, vectors.vectors)


def test_prepare_gives_the_words_of_both_kinds_of_texts_vectors(bert: str, tmp_path: Path):
    labeled, texts = tmp_path / "a.tsv", tmp_path / "texts.txt"
    labeled.write_text("".join(f"rain closes schools in leeds {i}\tleeds\n" for i in range(30)))
    texts.write_text("Storms close roads\nstorms again\nonce\n")
    given = ("prepare", str(labeled), "--out", str(tmp_path / "d"), "--vectors-from", bert, "--vector-size", "8")
    done = call(*given, "--pretrain", str(texts), "--pretrain-frequency", "2", "--json")
    assert done.exit_code == 0, done.output
    vectors = last_json(done.stdout)["vectors"]
    dataset = Dataset(str(tmp_path / "d"))
    words, table = dataset.tokenizer().get_vocab(), dataset.vectors()
    assert table is not None and table.shape == (len(words), 8)
    assert vectors["words_joined"] == 1 and "storms" in words and "once" not in words
    assert vectors["words_covered"] == vectors["words"] - 2  # all but the special words
    assert vectors["distilled"]["encoder"] == bert and vectors["distilled"]["texts"]["texts"] == 3
    known = sorted((word for word in words if not word.startswith("<")), key=words.__getitem__)
    assert np.array_equal(table[words["storms"]], WordEncoder(bert)(known, 8)["storms"])
    done = call(*given, "--overwrite", "--json")
    assert done.exit_code == 0 and last_json(done.stdout)["vectors"]["distilled"]["texts"] is None


def test_a_bundle_gives_the_vectors_of_its_own_encoder(bert: str, small_dataset: str, tmp_path: Path):
    files, dataset = load_encoder(bert), Dataset(small_dataset)
    tree = {"data": small_dataset, "tagger": {"encoder": bert, "cell": "none", "embedding_dim": 0, "keyword_layer": 1}}
    config = make_config(tree)
    tagger = new_tagger(config.tagger, dataset.info["words"], 0, encoder=files)
    weights = tagger.state_dict()
    location, metrics = str(tmp_path / "bundle"), {**summarize(np.ones((2, 8), np.int64))}
    save_bundle(location, config, dataset.tokenizer_bytes(), weights, metrics, files)
    assert np.allclose(WordEncoder(location)(WORDS, 4).vectors, WordEncoder(bert)(WORDS, 4).vectors, atol=1e-5)
    for name in weights:
        weights[name] = weights[name] * (1.5 if "layer.1" in name else 1)
    save_bundle(location, config, dataset.tokenizer_bytes(), weights, metrics, files)
    assert not np.allclose(WordEncoder(location)(WORDS, 4).vectors, WordEncoder(bert)(WORDS, 4).vectors, atol=1e-3)


def test_what_cannot_make_vectors_is_refused(bert: str, small_bundle: str, small_dataset: str, tmp_path: Path):
    refused(lambda: WordEncoder(small_bundle), small_bundle, "bundle without an encoder")
    refused(lambda: WordEncoder(str(tmp_path / "none")), "none")
    encoder = WordEncoder(bert)
    refused(lambda: encoder(WORDS * 9, 64), "states have 32 values", "--vector-size is 64")
    refused(lambda: encoder(WORDS, 20), "there are 14 words", "--vector-size is 20")
    labeled, vectors = tmp_path / "a.tsv", tmp_path / "vectors.txt"
    labeled.write_text("rain in leeds\tleeds\n" * 9)
    vectors.write_text("rain 1 2\n")
    given = ("prepare", str(labeled), "--out", str(tmp_path / "d"), "--vectors-from", bert)
    done = call(*given, "--vectors", str(vectors))
    assert done.exit_code == 2 and "--vectors-from and --vectors" in done.stderr and not (tmp_path / "d").exists()


def test_words_are_counted_over_all_texts(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("b a\n\na C\nc a http://x.y\n")
    words, texts = frequent_words(unlabeled_inputs([str(path)]), 2)
    assert words == ["a", "c"] and texts["texts"] == 3
    assert frequent_words(unlabeled_inputs([str(path)]), 1)[0] == ["a", "c", "<url>", "b"]
