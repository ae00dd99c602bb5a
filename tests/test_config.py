from pathlib import Path

import pytest
from helpers import refused

from model.config import TrainingConfig, assign, fields, make_config, merge, read_config, set_dotted
from model.presets import _MIN_STEPS, PRESETS, preset_values

RECORD = {"alpha": 0.3, "lr": 1e-3, "global_batch_size": 64}


def test_defaults_are_the_records():
    config = make_config({"data": "d"})
    assert config.training.model_dump().items() >= RECORD.items()
    tagger = config.tagger
    assert (tagger.cell, tagger.embedding_dim, tagger.keyword_hidden, tagger.keyphrase_hidden, tagger.window) == (
        "rnn",
        300,
        300,
        300,
        3,
    )
    assert tagger.dropout == 0.5 and not tagger.bidirectional


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("training.alpha=1.5", ["training.alpha", "1.5"]),
        ("training.alpha=-0.1", ["training.alpha"]),
        ("training.lr=0", ["training.lr", "greater than 0"]),
        ("training.lr=.nan", ["training.lr"]),
        ("training.lr=fast", ["training.lr", "fast"]),
        ("training.epochs=0", ["training.epochs"]),
        ("training.global_batch_size=0", ["training.global_batch_size"]),
        ("tagger.window=4", ["tagger", "odd"]),
        ("tagger.cell=transformer", ["tagger.cell", "'rnn', 'gru', 'lstm' or 'none'"]),
        ("tagger.dropout=1", ["tagger.dropout"]),
        ("run.workers=0", ["run.workers"]),
        ("run.name=../x", ["run.name"]),
        ("training.learning_rate=1", ["training.learning_rate is unknown", "training.lr"]),
        ("trainig.lr=1", ["trainig is unknown", "tagger, training, run"]),
        ("lr=1", ["lr is unknown; write training.lr"]),
        ("tagger.lr=1", ["tagger.lr is unknown; write training.lr"]),
        ("nothing", ["--set nothing", "="]),
        ("tagger.cell=[gru", ["--set tagger.cell", "[gru", "YAML"]),
        ("data=*", ["--set data", "YAML", "quote"]),
        ("data=" + 2000 * "[", ["--set data", "YAML"]),
        ("training=5", ["training is 5"]),
        ("data.x=1", ["data"]),
    ],
)
def test_what_is_not_allowed_is_named(assignment: str, parts: list[str]):
    def run() -> None:
        tree: dict = {"data": "d"}
        assign(tree, assignment)
        make_config(tree)

    refused(run, *parts)


@pytest.mark.parametrize(
    ("value", "read"),
    [("1e-3", 1e-3), ("2", 2), ("true", True), ("gru", "gru"), ("0.5", 0.5), ("gene", "gene"), ("1E2", 100.0)],
)
def test_values_are_read_as_yaml_with_plain_exponents(value: str, read: object):
    tree: dict = {}
    assign(tree, f"a.b={value}")
    assert tree == {"a": {"b": read}}


def test_files(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {lr: 0.002}\ntagger:\n  cell: gru\n")
    assert read_config(str(path)) == {"training": {"lr": 0.002}, "tagger": {"cell": "gru"}}
    path.write_text("just words")
    refused(lambda: read_config(str(path)), "c.yaml", "no configuration")
    path.write_text("a: [")
    refused(lambda: read_config(str(path)), "c.yaml", "not YAML")
    refused(lambda: read_config(str(tmp_path / "none.yaml")), "none.yaml")
    path.write_text("tagger.cell: gru\n")
    refused(lambda: make_config({"data": "d", **read_config(str(path))}), "tagger.cell", "as tagger: {cell: ...}")


def test_a_value_where_fields_should_be_is_named():
    refused(lambda: set_dotted({"training": 5}, "training.lr", 0.1), "training is 5", "no fields below it")
    refused(lambda: make_config({"data": "d", "training": 5}), "training is 5")


def test_a_section_has_fields_and_no_value(tmp_path: Path):
    refused(lambda: assign({}, "training=5"), "--set training=5", "is a section")
    (tmp_path / "c.yaml").write_text("run: 5")
    refused(lambda: read_config(str(tmp_path / "c.yaml")), "c.yaml", "run is 5")


def test_every_field_has_a_dotted_name():
    names = set(fields())
    assert {"data", "training.lr", "training.alpha", "tagger.cell", "run.workers"} <= names


def test_a_configuration_survives_being_saved():
    config = make_config({"data": "d", "training": {"lr": 0.01}, "run": {"name": "x"}})
    assert make_config(config.model_dump(mode="json")) == config


def test_a_tree_is_put_over_another():
    tree = {"training": {"lr": 1, "alpha": 2}, "data": "a"}
    merge(tree, {"training": {"lr": 3}, "tagger": {"cell": "gru"}, "data": "b"})
    assert tree == {"training": {"lr": 3, "alpha": 2}, "tagger": {"cell": "gru"}, "data": "b"}


def test_a_section_of_a_file_may_be_empty(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("data: d\ntraining:\ntagger: {cell: gru}\n")
    assert read_config(str(file)) == {"data": "d", "tagger": {"cell": "gru"}}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name: str):
    make_config({"data": "d", **preset_values(name)})


@pytest.mark.parametrize("name", ["best", "encoder"])
def test_few_texts_are_read_more_often(name: str):
    def training(texts: int | None) -> TrainingConfig:
        return make_config({"data": "d", **preset_values(name, texts)}).training

    usual, few = training(None), training(320)
    assert training(1_000_000) == usual
    assert few.epochs * 10 >= _MIN_STEPS > (few.epochs - 1) * 10  # 10 batches of 32 texts
    assert few.epochs / usual.epochs == pytest.approx(few.patience / usual.patience, rel=0.15)
    assert few.model_copy(update={"epochs": usual.epochs, "patience": usual.patience}) == usual


def test_the_record_is_the_same_for_few_texts():
    assert preset_values("record", 10) == preset_values("record")


def test_the_preset_of_the_record_is_the_default():
    assert make_config({"data": "d", **preset_values("record")}) == make_config({"data": "d"})


def test_an_unknown_preset_is_named():
    refused(lambda: preset_values("bst"), "--preset bst", "record, best")
