"""Ranges, samplers, and what of them is refused."""

import math

import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from distributed.sweep.plan import make_plan
from distributed.sweep.record_runs import record_settings
from distributed.sweep.space import (
    Choice,
    NumericRange,
    apply_values,
    check_space,
    grid,
    optuna_space,
    parse_space,
    sample,
)
from model.config import make_config

BASE = make_config({"data": "d"})


def space(*texts: str, sampler: str = "random", fixed: tuple[str, ...] = ()):
    plan = make_plan({"config": {"data": "d"}, "space": texts, "fixed": fixed, "sampler": sampler})
    return plan.strategy.space(plan)


def test_lr_and_alpha_are_searched_unless_something_else_is_said():
    assert space() == {
        "training.lr": NumericRange(1e-4, 1e-2, log=True, whole=False),
        "training.alpha": NumericRange(0.1, 0.9, log=False, whole=False),
    }
    assert set(space(fixed=("training.alpha",))) == {"training.lr"}
    assert space("training.lr=0.001:0.002")["training.lr"] == NumericRange(0.001, 0.002, log=False, whole=False)
    assert space("tagger.cell=rnn,gru")["tagger.cell"] == Choice(("rnn", "gru"))
    assert space("tagger.bidirectional=true,false")["tagger.bidirectional"] == Choice((True, False))


@given(st.integers(0, 10_000), st.integers(0, 500))
def test_draws_are_in_their_ranges_and_depend_on_seed_and_number_alone(seed: int, number: int):
    ranges = space(
        "tagger.keyword_hidden=100:400", "tagger.keyphrase_hidden=log:8:64", "training.global_batch_size=16,32"
    )
    values = sample(ranges, seed, number)
    assert values == sample(ranges, seed, number)
    assert 1e-4 <= values["training.lr"] <= 1e-2 and 0.1 <= values["training.alpha"] <= 0.9
    assert isinstance(values["tagger.keyword_hidden"], int) and 100 <= values["tagger.keyword_hidden"] <= 400
    assert isinstance(values["tagger.keyphrase_hidden"], int) and 8 <= values["tagger.keyphrase_hidden"] <= 64
    assert values["training.global_batch_size"] in (16, 32)
    apply_values(BASE, values)


def test_log_draws_are_uniform_in_the_logarithm():
    lrs = [sample(space(), 0, number)["training.lr"] for number in range(2000)]
    below = sum(lr < 1e-3 for lr in lrs)  # the geometric middle of the range
    assert abs(below - 1000) < 4 * math.sqrt(2000) / 2


def test_a_grid_has_an_end():
    space = parse_space([f"tagger.{name}=1:1000:1000" for name in ("keyword_hidden", "keyphrase_hidden")], {}, set())
    refused(lambda: grid(space), "1,000,000 combinations", "at most 10,000")


def test_a_grid_is_every_combination():
    assert len(grid(space(sampler="grid"))) == 25
    combinations = grid(
        space("training.lr=log:1e-4:1e-2:3", "training.alpha=0.3", "tagger.cell=rnn,gru", sampler="grid")
    )
    assert [values["training.lr"] for values in combinations] == [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2]
    refused(lambda: grid(space("training.lr=log:1e-4:1e-2", sampler="grid")), "number of points", "log:a:b:5")


def test_points_of_whole_numbers_are_tried_once_each():
    found = space("training.global_batch_size=log:1:16:8", "training.lr=1e-3", "training.alpha=0.3", sampler="grid")
    assert [values["training.global_batch_size"] for values in grid(found)] == [1, 2, 3, 5, 7, 11, 16]


def test_the_record_is_repeated_in_28_epochs():
    settings = record_settings()
    assert sum(epochs for _, _, epochs in settings) == 5 * 1 + 5 * 2 + 13
    assert [values["training.lr"] for series, values, _ in settings if series == "lr"] == [1e-3, 2e-3, 1e-4, 2e-4, 1e-5]
    assert [values["training.alpha"] for series, values, _ in settings if series == "alpha"] == [
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
    ]


def test_optuna_sees_the_same_ranges():
    found = optuna_space(space("tagger.keyword_hidden=100:400", "tagger.cell=rnn,gru"))
    assert (found["training.lr"].low, found["training.lr"].high, found["training.lr"].log) == (1e-4, 1e-2, True)
    assert (found["tagger.keyword_hidden"].low, found["tagger.keyword_hidden"].high) == (100, 400)
    assert found["tagger.cell"].choices == ("rnn", "gru")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("training.lr", "write it as --space"),
        ("training.lr=", "write it as --space"),
        ("training.lr=1:x", "cannot be read as a range"),
        ("training.lr=log:0:1", "0 < low"),
        ("training.lr=2:1", "low < high"),
        ("training.lr=1:2:1", "2 to 10,000 points"),
        ("training.lr=1:2:0", "2 to 10,000 points"),
        ("training.lr=1:2:7777777777777777", "2 to 10,000 points"),
        ("training.lr=1e-3:inf", "low < high"),
        ("tagger.keyword_hidden=100:inf:3", "low < high"),
        ("training.rate=1:2", "training.rate: is unknown"),
        ("run.workers=1,2", "does not change the result"),
        ("training.epochs=1,2", "--max-epochs"),
        ("training.alpha=0.5:1.5", "training.alpha is 1.5"),
        ("tagger.cell=rnn,cnn", "tagger.cell"),
        ("tagger.encoder=one,two", "share one encoder"),
        ("training.data=memory,stream", "share their data"),
        ("tagger.keyword_layer=1,2", "needs an encoder"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, part: str):
    refused(lambda: space(text), part)


def test_layers_are_whole_numbers():
    base = make_config({"data": "d", "tagger": {"encoder": "e"}})
    found = parse_space(["tagger.keyword_layer=1:6"], {}, set())
    check_space(found, base)
    assert {sample(found, 0, number)["tagger.keyword_layer"] for number in range(60)} == set(range(1, 7))


def test_a_field_is_fixed_or_searched_not_both():
    refused(lambda: space("training.lr=1e-3,1e-4", fixed=("training.lr",)), "leave one of the two out")
    refused(lambda: space(fixed=("training.lr", "training.alpha")), "nothing is left to search")
