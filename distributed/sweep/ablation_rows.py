"""The rows of an ablation: a configuration, and configurations that differ from it by one field."""

import json
from collections.abc import Callable

from distributed.sweep.space import Space, Value, Values, apply_values, choices
from model.config import Config
from model.errors import UserError

FULL, RECORD = "whole", "record"
_FOLLOWS = ("encoder_digest", "teacher_digest")  # from another field
# The budget and the seeds are the same in all rows, and the split is loaded once for all of them.
_COMMON = ("training.epochs", "training.patience", "training.seed", "training.data")


def ablation_rows(base: Config, space: Space, check: Callable[[Config], None]) -> tuple[dict[str, Values], list[str]]:
    """Return what an ablation trains.

    Row `whole` is the base. Each field that is not at its default is reset to it in a row of its own, each value of the
    space is a row, and in the last one, `record`, all fields are reset. A row that would repeat another is left out.

    Args:
        base: the configuration that the rows differ from.
        space: values to try in place of the base's own.
        check: raises UserError where a configuration does not fit the dataset.

    Returns:
        the changed fields of each row, by its name; a line for each row that is left out because its fields can only be
        reset together with others.

    Raises:
        UserError: the base or a value of the space is not allowed, or nothing would be compared.
    """
    own, defaults = _numbers(base), _numbers(Config(data=base.data))
    rows: dict[str, Values] = {}
    left_out = []

    def add(values: Values, name: str) -> None:
        config = apply_values(base, values)
        check(config)
        changed = {field: value for field, value in _numbers(config).items() if value != own[field]}
        if name == FULL or (changed and changed not in rows.values()):
            rows[name] = changed

    def reset(values: Values, name: str) -> None:
        try:
            add(values, name)
        except UserError as error:
            left_out.append(f"there is no row {name}: {error}")

    add({}, FULL)
    defaulted = {name: value for name, value in defaults.items() if value != own[name] and name not in _COMMON}
    for name, value in defaulted.items():
        reset({name: value}, _row(name, value))
    for name, values in choices(space, "ablation").items():
        if name in _COMMON:
            raise UserError(f"--space {name}: all rows of an ablation have it in common; leave it out")
        for value in values:
            add({name: value}, _row(name, value))
    reset(defaulted, RECORD)
    if len(rows) == 1:
        raise UserError(
            "--sampler ablation: nothing differs from the defaults, so there is nothing to reset; add --preset "
            "best, --set, or values to compare, such as --space tagger.cell=gru,lstm"
        )
    return rows, left_out


def _numbers(config: Config) -> Values:
    """Return the fields that change the metrics, by dotted name."""
    parts = {"tagger": config.tagger, "training": config.training}
    return {f"{part}.{name}": value for part, tree in parts.items() for name, value in tree if name not in _FOLLOWS}


def _row(name: str, value: Value) -> str:
    """Return a row's name: the field as `--set` takes it."""
    return f"{name}={value if isinstance(value, str) else json.dumps(value)}"
