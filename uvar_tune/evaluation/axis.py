"""One inference parameter as the profile search sees it: a range or choices, and a scale on which it is even."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from uvar_tune.errors import ConfigError, choose


@dataclass(frozen=True)
class Axis:
    """One inference parameter.

    Attributes:
        name: key of the points asked.
        low, high: its range; for ``choices`` unused.
        start: the value before any search, always scored; one of the choices where there are.
        coarse: where a search of this axis alone looks first, besides ``start``; empty: both ends.
        scale: in which distances are measured: linear, log, or log1p (log that reaches 0, as guidance does).
        choices: in their natural order (top-k, top-p), instead of a range.
        digits: decimals of the values asked, so that records can be read and repeated; 0: whole numbers.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    start: float = 0.0
    coarse: tuple[float, ...] = ()
    scale: str = "linear"
    choices: tuple[float, ...] = ()
    digits: int = 2

    def __post_init__(self):
        choose(self.scale, _SCALES, "scale", where=self.name)
        if self.choices:
            choose(self.start, self.choices, "start", where=self.name)
            return
        if self.coarse and len({self.start, *self.coarse}) < 2:
            raise ConfigError(
                f"start and coarse are all {self.start:g}: at least two places are needed", where=self.name
            )
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ConfigError(f"{self.low:g} … {self.high:g} is no {self.scale} range", where=self.name)
        for value in (self.start, *self.coarse):
            if not self.low <= value <= self.high:
                raise ConfigError(
                    f"{value:g} lies outside {self.low:g} … {self.high:g}",
                    where=self.name,
                    nearest=f"{min(max(value, self.low), self.high):g}",
                )

    @classmethod
    def of(cls, name: str, entry, start: float) -> Axis:
        """The axis of a `space:` entry of role inference (``type``, ``low``, ``high``, ``log``, ``choices``); ``name`` without
        its section."""
        if entry.type == "categorical":
            return cls(name, start=start, choices=tuple(entry.choices))
        known = next((axis for axis in (CFG_SCALE, CFG_RAMP, TEMPERATURE) if axis.name == name), cls(name))
        whole = entry.type == "int"
        low, high = (int(entry.low), int(entry.high)) if whole else (entry.low, entry.high)
        inside = tuple(value for value in known.coarse if low < value < high)
        return cls(
            name,
            low=low,
            high=high,
            start=start,
            coarse=(low, *inside, high),
            digits=0 if whole else known.digits,
            scale="log" if entry.log else known.scale,
        )

    def to_unit(self, value: float) -> float:
        """The place of a value in [0, 1]."""
        if self.choices:
            return self.choices.index(value) / max(len(self.choices) - 1, 1)
        to, _ = _SCALES[self.scale]
        return (to(value) - to(self.low)) / (to(self.high) - to(self.low))

    def from_unit(self, unit: float) -> float:
        """The value at a place in [0, 1]: one of those given (start, coarse, the ends) as it is, any other rounded."""
        if self.choices:
            return self.choices[round(unit * (len(self.choices) - 1))]
        given = next(
            (value for value in (self.start, *self.coarse, self.low, self.high) if self.to_unit(value) == unit), None
        )
        if given is not None:
            return given
        to, back = _SCALES[self.scale]
        value = back(to(self.low) + unit * (to(self.high) - to(self.low)))
        value = min(max(round(value, self.digits), self.low), self.high)
        return value if self.digits else int(value)

    def at_bound(self, value: float) -> bool:
        """Whether a value is the end of a range that could be wider: nothing lies below 0, or beyond the choices."""
        return not self.choices and (value == self.high or value == self.low != 0)


_SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "linear": (float, float),
    "log": (math.log, math.exp),
    "log1p": (math.log1p, math.expm1),
}

CFG_SCALE = Axis("cfg_scale", low=0.0, high=10.0, start=1.5, coarse=(0.0, 0.5, 3.0, 6.0), scale="log1p")  # 0 = off
CFG_RAMP = Axis("cfg_ramp", low=0.0, high=2.0, start=1.0)  # power of k/(K−1): 1 = VAR's linear ramp, 0 = constant
TEMPERATURE = Axis("temperature", low=0.7, high=1.4, start=1.0, scale="log")
