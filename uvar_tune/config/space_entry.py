"""One entry of ``space:``, a searched parameter: its role, type, range, condition and the baseline's value."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator


class SpaceEntry(BaseModel):
    """A parameter of the space, under its dotted name.

    ``role``: scientific (what the question is about), nuisance (tuned so that the comparison is fair), inference
    (needs no retraining), fixed (one choice, named because the answer holds for it alone).
    ``when``: {dotted name: value or list of values}; the parameter exists only where each holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    role: Literal["scientific", "nuisance", "inference", "fixed"]
    type: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | int | float | bool, ...] | None = None
    when: dict[str, Any] = {}
    baseline: Any = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.role == "fixed" and (self.type != "categorical" or len(self.choices or ()) != 1 or self.when):
            raise ValueError("a fixed parameter is categorical with exactly one choice, and without `when`")
        if self.type == "categorical":
            if not self.choices or len(set(self.choices)) != len(self.choices):
                raise ValueError("a categorical parameter needs choices, each once")
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("a categorical parameter takes choices, not low, high or log")
            return self
        if self.choices is not None:
            raise ValueError(f"a parameter of type {self.type} takes low and high, not choices")
        for bound in ("low", "high"):
            if getattr(self, bound) is None:
                raise ValueError(f"a parameter of type {self.type} takes low and high, and {bound} is missing")
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log scale needs low > 0, not {self.low:g}")
        if self.type == "int" and (self.low % 1 or self.high % 1):
            raise ValueError(f"an int parameter needs whole bounds, not {self.low:g} and {self.high:g}")
        return self

    def active(self, values: dict[str, Any]) -> bool:
        """Whether the condition ``when`` holds, given the values suggested so far and the configuration's own."""
        return all(
            values.get(name) in (wanted if isinstance(wanted, (list, tuple)) else [wanted])
            for name, wanted in self.when.items()
        )

    def holds(self, value: Any) -> bool:
        """Whether ``value`` lies in the range, or is one of the choices."""
        if self.type == "categorical":
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        whole = self.type == "float" or (isinstance(value, (int, float)) and value % 1 == 0)
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and whole and self.low <= value <= self.high
        )

    def edges(self) -> list[Any]:
        """The extreme values, or all choices: what must be valid for the whole range to be."""
        if self.type == "categorical":
            return list(self.choices)
        return [int(self.low), int(self.high)] if self.type == "int" else [self.low, self.high]
