"""Usage lines, and usage errors as one line: the option, the value, the rule, the nearest valid choice."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import Any

from typer.core import TyperCommand

from uvar_tune.errors import ConfigError

_MAX_VALUE_LENGTH = 80  # characters of a value that a message shows


class Command(TyperCommand):
    """A command that refuses an option given twice if it takes one value, and prints metavars as they are written."""

    def parse_args(self, ctx, args):
        """Parse; ConfigError for an option given twice."""
        arguments = list(args)
        rest = super().parse_args(ctx, args)
        for parameter, times in Counter(self.make_parser(ctx).parse_args(args=arguments)[2]).items():
            if times > 1 and not (parameter.multiple or getattr(parameter, "is_flag", False)):
                raise ConfigError(f"given {times} times: it takes one value", where=parameter.opts[0])
        return rest

    def collect_usage_pieces(self, ctx):
        """The words of the usage line after the command."""
        arguments = [parameter for parameter in self.params if parameter.param_type_name == "argument"]
        return ["[OPTIONS]", *(parameter.metavar or parameter.name.upper() for parameter in arguments)]


def usage(error: Any, arguments: list[str]) -> str:
    """One line for a usage error of typer.

    Args:
        error: the exception, with ``format_message()``.
        arguments: the command line, from which the value is taken if typer's message omits it.
    """
    command = getattr(getattr(error, "ctx", None), "command", None)
    if any("key=value" in (parameter.metavar or "") for parameter in getattr(command, "params", ())):
        setting = _intended_setting(getattr(error, "option_name", ""), arguments)
        if setting:
            return (
                f"{error.format_message().split(' (')[0]}: settings are given as key=value, without dashes; "
                f"did you mean {setting!r}?"
            )
    if not hasattr(error.__cause__, "errors"):  # not a validation error of pydantic, which typer uses to convert values
        return " ".join(error.format_message().split())
    first = error.__cause__.errors()[0]
    value = str(first["input"])
    return str(
        ConfigError(
            f"{value[:_MAX_VALUE_LENGTH]!r} {first['msg'].removeprefix('Input ')}",
            where=error.param.opts[0],
            nearest=_nearest_number(value, first),
        )
    )


def _intended_setting(option: str, arguments: list[str]) -> str | None:
    """The key=value meant by ``--set key=value``, ``--key=value`` or ``--key value``."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if option and name == option:
            value = value if equals else "".join(arguments[i + 1 : i + 2])
            return f"{name.lstrip('-')}={value}" if "." in name else value if "=" in value else None
    return None


def _nearest_number(value: str, problem: dict[str, Any]) -> str | None:
    """The nearest number that an option accepts instead of ``value``, given pydantic's error."""
    bounds = problem.get("ctx", {})
    with contextlib.suppress(ValueError, OverflowError):  # not a number, NaN or infinity
        bound = bounds.get("ge", bounds.get("le"))
        if bound is not None and not math.isnan(float(value)):
            return f"{bound:g}"
        return str(round(float(value)))
    return None
