"""What is wrong with a command line, in one line: the option, the value, the rule, the nearest valid choice."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import Any

from typer.core import TyperCommand

from uvar_tune.errors import ConfigError

_LONGEST = 80  # characters of a value that are shown


class Command(TyperCommand):
    """A command that refuses an option given twice, where it takes one value."""

    def parse_args(self, ctx, args):
        given = list(args)
        rest = super().parse_args(ctx, args)
        for parameter, times in Counter(self.make_parser(ctx).parse_args(args=given)[2]).items():
            if times > 1 and not (parameter.multiple or getattr(parameter, "is_flag", False)):
                raise ConfigError(f"given {times} times: it takes one value", where=parameter.opts[0])
        return rest


def usage(error: Any, arguments: list[str]) -> str:
    """Click's and typer's usage errors in one line: with the value that is wrong, which typer leaves out."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    if any("key=value" in (parameter.metavar or "") for parameter in getattr(command, "params", ())):
        setting = _setting(getattr(error, "option_name", ""), arguments)
        if setting:
            return (
                f"{error.format_message().split(' (')[0]}: settings are given as key=value, without dashes; "
                f"did you mean {setting!r}?"
            )
    if not hasattr(error.__cause__, "errors"):  # pydantic's, by which typer reads values
        return " ".join(error.format_message().split())
    first = error.__cause__.errors()[0]
    value = str(first["input"])
    return str(
        ConfigError(
            f"{value[:_LONGEST]!r} {first['msg'].removeprefix('Input ')}",
            where=error.param.opts[0],
            nearest=_nearest_number(value, first),
        )
    )


def _setting(option: str, arguments: list[str]) -> str | None:
    """The key=value that was meant by ``--set key=value``, ``--key=value`` or ``--key value``."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if option and name == option:
            value = value if equals else "".join(arguments[i + 1 : i + 2])
            return f"{name.lstrip('-')}={value}" if "." in name else value if "=" in value else None
    return None


def _nearest_number(value: str, complaint: dict[str, Any]) -> str | None:
    """The nearest number that an option takes instead of ``value``, by pydantic's complaint of it."""
    bounds = complaint.get("ctx", {})
    with contextlib.suppress(ValueError, OverflowError):  # no number, NaN or infinity
        nearest = bounds.get("ge", bounds.get("le"))
        if nearest is not None and not math.isnan(float(value)):
            return f"{nearest:g}"
        return str(round(float(value)))
    return None
