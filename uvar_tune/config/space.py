"""The search space of a configuration: parameters, conditions, baseline, and the check that every point is valid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from uvar_tune.config.schema import Config, dotted_names
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError, nearest

BASELINE = {"loss.lambda_1": 0.0, "loss.lambda_2": 0.0}
SEARCHABLE = ("model", "loss", "training", "inference")  # sections that may differ between trials
_NEVER = (
    "loss.lambda_unit",
    "training.init_from",
    "training.betas",
    "inference.search",
    "inference.search_cfg_scales",
    "inference.search_refinements",
    "inference.search_axes",
)
_CFG, _LAMBDA_1 = "inference.cfg_scale", "loss.lambda_1"
OF_LAMBDA_1 = (
    "loss.reference",
    "loss.neighbours",
    "loss.perplexity",
    "loss.condition_on",
    "loss.discrepancy",
    "loss.dispersion",
    "loss.kl_smoothing",
)
_MAX_CORNERS = 1024  # combinations of bounds that are checked; of a larger space an even spread


def searched_entries(config: Config) -> dict[str, SpaceEntry]:
    """The entries that the sampler proposes: all except fixed ones and, if searched per checkpoint, inference ones."""
    per_checkpoint = config.inference.search == "per_checkpoint"
    return {
        name: entry
        for name, entry in config.space.items()
        if entry.role != "fixed" and not (per_checkpoint and entry.role == "inference")
    }


def searched_inference_entries(config: Config) -> dict[str, SpaceEntry]:
    """The inference entries except the CFG scale, by name without section: further axes of the inference search."""
    return {
        name.removeprefix("inference."): entry
        for name, entry in config.space.items()
        if entry.role == "inference" and name != _CFG
    }


def fixed_values(config: Config) -> dict[str, Any]:
    """The values of the fixed entries."""
    return {name: entry.choices[0] for name, entry in config.space.items() if entry.role == "fixed"}


def point(config: Config, pick: Callable[[str, SpaceEntry], Any]) -> dict[str, Any]:
    """One point of the space.

    Args:
        config: holds the space.
        pick: (name, entry) → value; called in the order of the file, for each parameter whose condition holds.
    """
    values = fixed_values(config)
    for name, entry in searched_entries(config).items():
        if entry.active({other: values.get(other, config.get(other)) for other in entry.when}):
            values[name] = pick(name, entry)
    return values


def baseline_point(config: Config) -> dict[str, Any]:
    """The baseline: λ1 = λ2 = 0, the other parameters at the baseline of their entries if there is one."""
    baselines = {name: entry.baseline for name, entry in config.space.items() if entry.baseline is not None}
    return {**fixed_values(config), **baselines, **BASELINE}


def grid_size(config: Config) -> int:
    """The number of combinations of the searched choices."""
    return math.prod(len(entry.choices) for entry in searched_entries(config).values())


def grid_point(config: Config, index: int) -> dict[str, Any]:
    """Combination ``index`` of the choices; the last entry of the file changes fastest."""
    values = {}
    for name, entry in reversed(searched_entries(config).items()):
        index, digit = divmod(index, len(entry.choices))
        values[name] = entry.choices[digit]
    return dict(reversed(values.items()))


def check_space(config: Config) -> None:
    """Check that each bound, choice, baseline and combination is a valid configuration.

    Raises:
        ConfigError: the first entry that is not, and why.
    """
    for name, entry in config.space.items():
        _check_name(config, name, entry)
        _check_conditions(config, name, entry)
        _check_baseline(name, entry)
        _check_share(config, name, entry)
        for value in entry.edges():
            variant = _validated(config, {name: value}, f"space.{name}: {value!r}")
            _check_kind(name, value, variant.get(name))
    _check_inference(config)
    _check_ineffective(config)
    _check_grid(config)
    _check_final(config)
    _validated(config, baseline_point(config), "the baseline (λ1 = λ2 = 0)")
    for values in _corners(config):
        _validated(config, values, "the space allows " + ", ".join(f"{name}={value}" for name, value in values.items()))


def _check_name(config: Config, name: str, entry: SpaceEntry) -> None:
    names = [other for other in dotted_names() if other.split(".")[0] in SEARCHABLE and other not in _NEVER]
    if name not in names:
        raise ConfigError(f"space: {name!r} cannot be searched", nearest=nearest(name, names))
    if entry.role != "fixed" and (entry.role == "inference") != name.startswith("inference."):
        raise ConfigError(f"space.{name}.role {entry.role!r}: inference parameters, and no others, have role inference")


def _check_conditions(config: Config, name: str, entry: SpaceEntry) -> None:
    before = list(itertools.takewhile(lambda other: other != name, config.space))
    for other, allowed in entry.when.items():
        if other not in dotted_names():
            raise ConfigError(f"space.{name}.when: unknown parameter {other!r}", nearest=nearest(other, dotted_names()))
        condition = config.space.get(other)
        if condition is None:
            continue
        if other not in before or other not in {*searched_entries(config), *fixed_values(config)}:
            raise ConfigError(f"space.{name}.when: {other!r} must be sampled before it")
        for value in allowed if isinstance(allowed, (list, tuple)) else [allowed]:
            if not condition.holds(value):
                raise ConfigError(
                    f"space.{name}.when: {other!r} is never {value!r}", nearest=nearest(value, condition.choices or ())
                )


def _check_baseline(name: str, entry: SpaceEntry) -> None:
    if entry.baseline is None:
        return
    if name in BASELINE:
        if entry.baseline != 0:
            raise ConfigError(f"space.{name}.baseline {entry.baseline!r}: the baseline has λ = 0", nearest="0")
    elif not entry.holds(entry.baseline):
        if entry.type != "categorical" and isinstance(entry.baseline, str):
            raise ConfigError(f"space.{name}.baseline {entry.baseline!r}: a number is expected, without quotes")
        held = list(entry.choices) if entry.choices else f"[{entry.low:g}, {entry.high:g}]"
        raise ConfigError(f"space.{name}.baseline {entry.baseline!r} is outside its range {held}")


def _check_kind(name: str, value: Any, setting: Any) -> None:
    """A choice that is a text belongs to a setting that is a text."""
    if isinstance(value, str) and not isinstance(setting, str):
        raise ConfigError(f"space.{name}: {value!r} is a text, and the setting is {setting!r}; write it without quotes")


def _check_share(config: Config, name: str, entry: SpaceEntry) -> None:
    if name in BASELINE and config.loss.lambda_unit == "share" and entry.type == "float" and not entry.log:
        raise ConfigError(f"space.{name}: a share of the gradient (loss.lambda_unit) is searched on a log scale")


def _check_ineffective(config: Config) -> None:
    """Parameters of L_2nd are searched only if λ1 > 0; otherwise they have no effect."""
    weight = config.space.get(_LAMBDA_1)
    never = config.loss.lambda_1 == 0 if weight is None else weight.type == "categorical" and not any(weight.choices)
    sometimes = weight is not None and weight.type == "categorical" and weight.holds(0)
    for name, entry in searched_entries(config).items():
        if name in OF_LAMBDA_1 and never:
            raise ConfigError(f"space.{name}: has no effect, because {_LAMBDA_1} is 0 in every trial")
        allowed = entry.when.get(_LAMBDA_1, 0)
        if name in OF_LAMBDA_1 and sometimes and 0 in (allowed if isinstance(allowed, (list, tuple)) else [allowed]):
            raise ConfigError(
                f"space.{name}: has no effect if {_LAMBDA_1} is 0; give it `when: "
                f"{{{_LAMBDA_1}: …}}` with the choices above 0"
            )


def _check_grid(config: Config) -> None:
    if config.study.sampler != "grid":
        return
    for name, entry in searched_entries(config).items():
        if entry.type != "categorical":
            raise ConfigError(
                f"space.{name}: study.sampler 'grid' tries every combination of choices, and this is a range; give "
                "it type categorical and choices",
                nearest="study.sampler qmc",
            )
        if entry.when:
            raise ConfigError(
                f"space.{name}.when: study.sampler 'grid' tries every combination, and this parameter does not "
                "exist in some",
                nearest="study.sampler qmc",
            )
    count = 1 + grid_size(config)
    if config.study.trials > count:
        raise ConfigError(
            f"study.trials {config.study.trials}: the baseline and the grid are {count} trials", nearest=str(count)
        )


def _check_final(config: Config) -> None:
    names = dotted_names()
    for name in config.final:
        if name not in names:
            raise ConfigError(f"final: unknown setting {name!r}", nearest=nearest(name, names))
    _validated(config, config.final, "final")


def _check_inference(config: Config) -> None:
    if config.inference.search != "per_checkpoint":
        return
    for name, entry in config.space.items():
        if name == _CFG and entry.role == "fixed":
            raise ConfigError(
                f"space.{name}: inference.search 'per_checkpoint' searches it; take inference.search 'joint'"
            )
        if entry.role == "inference" and entry.when:
            raise ConfigError(
                f"space.{name}.when: a parameter that is searched per checkpoint has no condition; take "
                "inference.search 'joint'"
            )
    entry = config.space.get(_CFG)
    if entry is not None and entry.type == "float":
        outside = [scale for scale in config.inference.search_cfg_scales if not entry.low <= scale <= entry.high]
        if outside:
            raise ConfigError(
                f"inference.search_cfg_scales: {outside[0]:g} is outside space.inference.cfg_scale "
                f"[{entry.low:g}, {entry.high:g}]"
            )


def _corners(config: Config):
    """Combinations of bounds, as they would be proposed; an even spread of them if there are too many."""
    entries = searched_entries(config)
    edges = [entry.edges() for entry in entries.values()]
    count = math.prod(len(values) for values in edges)
    for index in range(0, count, max(1, count // _MAX_CORNERS)):
        corner = {}
        for name, values in zip(entries, edges, strict=True):
            index, digit = divmod(index, len(values))
            corner[name] = values[digit]
        yield point(config, lambda name, _, corner=corner: corner[name])


def _validated(config: Config, values: dict[str, Any], description: str) -> Config:
    try:
        return config.with_values(values)
    except ConfigError as error:
        raise ConfigError(f"{description}: {error.message}") from None
