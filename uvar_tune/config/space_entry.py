"""One entry of section ``space``: role, type, range, condition and baseline value of a parameter."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator


class SpaceEntry(BaseModel):
    """A parameter of the space; its key in ``space`` is its dotted name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    role: Literal["scientific", "nuisance", "inference", "fixed"]
    """scientific: the subject of the question; nuisance: tuned for a fair comparison; inference: needs no retraining;
    fixed: one choice, stated because the answer holds only for it."""
    type: Literal["float", "int", "categorical"]
    """Type of the parameter."""
    low: float | None = None
    """Lower bound of a float or int."""
    high: float | None = None
    """Upper bound of a float or int."""
    log: bool = False
    """Search on a log scale."""
    choices: tuple[str | int | float | bool, ...] | None = None
    """Values of a categorical parameter."""
    when: dict[str, Any] = {}
    """Condition: dotted name → value or list of values. The parameter exists only if every part holds."""
    baseline: Any = None
    """Value of the baseline (default: the configuration's)."""

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
        """Whether the condition ``when`` holds.

        Args:
            values: dotted name → value, of the parameters sampled so far and of the configuration.
        """
        return all(
            values.get(name) in (allowed if isinstance(allowed, (list, tuple)) else [allowed])
            for name, allowed in self.when.items()
        )

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is in the range, or one of the choices."""
        if self.type == "categorical":
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices
            )
        is_integral = self.type == "float" or (isinstance(value, (int, float)) and value % 1 == 0)
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and is_integral
            and self.low <= value <= self.high
        )

    def edges(self) -> list[Any]:
        """The bounds, or all choices. If they are valid, the whole range is."""
        if self.type == "categorical":
            return list(self.choices)
        return [int(self.low), int(self.high)] if self.type == "int" else [self.low, self.high]
