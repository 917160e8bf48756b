"""What every section shares: types with bounds, named choices, and the base class."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0, le=10**15)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Size = Annotated[int, Field(gt=0, le=2**16)]
REFERENCES = ("uniform", "dataset", "semantic", "normal")
SAMPLERS = ("tpe", "gp", "qmc", "random", "nsga2", "grid")
SEARCH_AXES = ("cfg_scale", "temperature", "cfg_ramp")
PRUNERS = ("none", "median", "successive_halving")
IMAGE_FORMATS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "jfif", "gif", "avif", "jp2", "none")
LAMBDAS = ("loss.lambda_1", "loss.lambda_2")
SHARE_BOUNDS = (1e-3, 0.3)  # shares of the gradient: negligible below, rivalling the cross-entropy above
# Bounds of the sampling settings; beyond them samples do not change, or float32 overflows.
SAMPLING_BOUNDS = {"cfg_scale": (0.0, 100.0), "cfg_ramp": (0.0, 100.0), "temperature": (1e-4, 100.0)}
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _bounded(name: str) -> Any:
    low, high = SAMPLING_BOUNDS[name]
    return Annotated[float, Field(ge=low, le=high)]


CfgScale, CfgRamp, Temperature = map(_bounded, SAMPLING_BOUNDS)


class _SectionType(type(BaseModel)):
    """Makes a section that is built by hand raise a ConfigError of one line, as one that is read from a file does."""

    def __call__(cls, **values: Any):
        try:
            return super().__call__(**values)
        except ValidationError as error:
            from uvar_tune.config.messages import config_error  # it needs the schema

            raise config_error(error, section=cls) from None


class Section(BaseModel, metaclass=_SectionType):
    """A frozen group of settings that rejects unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=False,
        use_attribute_docstrings=True,
    )


def not_a_multiple(what: str, value: int, by: str, unit: int) -> str:
    """The message for a value that is no multiple of ``unit``, with the nearest ones."""
    low = value // unit * unit
    return f"{what} {value} is not a multiple of {by} {unit}; the nearest: {f'{low} or {low + unit}' if low else unit}"
