"""Tables of measured numbers next to the published ones: as data (JSON), as Markdown, and on the terminal.

Every number carries its protocol and its origin. A table of methods that were measured under unequal protocols is
refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.protocol import Origin, Protocol, require_equal
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.metrics import metric
from uvar_tune.paper.published import Published

_ARROWS = {"minimize": " ↓", "maximize": " ↑"}


@dataclass(frozen=True)
class Number:
    """A measured value with its protocol, its origin and, if known, its ± (``spread``)."""

    value: float
    protocol: Protocol
    origin: Origin
    spread: float | None = None

    def as_dict(self, name: str) -> dict[str, Any]:
        """Plain data for JSON, with unit and direction of the metric ``name``."""
        registered = metric(name)
        return {
            "value": self.value,
            "spread": self.spread,
            "unit": registered.unit,
            "direction": registered.direction,
            "protocol": self.protocol.as_dict(),
            "origin": self.origin.as_dict(),
        }


@dataclass(frozen=True)
class Column:
    """How one metric is shown.

    Attributes:
        metric: its name.
        title: of the column, with the unit.
        factor: from the unit of the metric to that of the title.
        digits: after the decimal point.
    """

    metric: str
    title: str
    factor: float = 1.0
    digits: int = 2

    def heading(self) -> str:
        """Title and direction, or the target if there is one."""
        entry = metric(self.metric)
        target = "" if entry.target is None else f" → {entry.target:g}"
        return f"{self.title}{_ARROWS.get(entry.direction, target)}"

    def text(self, number: Number | None) -> str:
        """A table cell, e.g. ``4.50 ± 0.12``; – if there is no number."""
        if number is None:
            return "–"
        spread = "" if number.spread is None else f" ± {number.spread * self.factor:.{self.digits}f}"
        return f"{number.value * self.factor:.{self.digits}f}{spread}"


@dataclass(frozen=True)
class Table:
    """One of the paper's tables with measured numbers.

    Attributes:
        name: file name and key, e.g. `table2`.
        title: heading.
        columns: the metrics in the paper's order, then our own.
        rows: method → metric → number; a missing metric is shown as –.
        published: the paper's figures.
        notes: what a reader must know to read the numbers.
        transposed: one line a metric and one column a method (Table 7), else one line a method.
        facts: further data for the JSON, e.g. the errors of each corruption.

    Raises:
        ProtocolMismatch: two methods' numbers of one metric are not comparable.
        ConfigError: a number is NaN or infinite.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: dict[str, dict[str, Number]]
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
    transposed: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for column in self.columns:
            present = [numbers[column.metric] for numbers in self.rows.values() if column.metric in numbers]
            for number in present:
                require_equal(present[0].protocol, number.protocol)
                if not math.isfinite(number.value):
                    raise ConfigError(f"{column.metric} is {number.value}, not a number", where=self.name)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = {
            method: {name: number.as_dict(name) for name, number in numbers.items()}
            for method, numbers in self.rows.items()
        }
        return {
            "table": self.name,
            "title": self.title,
            "rows": rows,
            "published": [one.as_dict() for one in self.published],
            "notes": list(self.notes),
            **self.facts,
        }

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """(headings, lines of table cells) as they are shown."""
        if self.transposed:
            methods = list(self.rows)
            headings = ["Metric", *methods] + (["published"] if self.published else [])
            lines = []
            for column in self.columns:
                cells = [column.heading(), *(column.text(self.rows[method].get(column.metric)) for method in methods)]
                lines.append(cells + ([self._published_metric(column.metric)] if self.published else []))
            return headings, lines
        headings = ["Method", *(column.heading() for column in self.columns)] + (
            ["published"] if self.published else []
        )
        methods = dict.fromkeys([*(one.method for one in self.published), *self.rows])
        lines = [
            [method, *(column.text(self.rows.get(method, {}).get(column.metric)) for column in self.columns)]
            + ([self._published_method(method)] if self.published else [])
            for method in methods
        ]
        return headings, lines

    def _published_metric(self, name: str) -> str:
        return (
            "; ".join(
                one.text() + (f" (good: {one.good_range})" if one.good_range else "")
                for one in self.published
                if one.metric == name
            )
            or "–"
        )

    def _published_method(self, method: str) -> str:
        """The paper's figures of this method, one line for each dataset and model."""
        titles = {
            column.metric: column.title.split(" (")[0] for column in self.columns
        }  # the paper's unit follows its figure
        lines: dict[tuple[str, str], list[str]] = {}
        for one in self.published:
            if one.method == method:
                lines.setdefault((one.dataset, one.model), []).append(f"{one.label or titles[one.metric]} {one.text()}")
        return "; ".join(
            f"{' '.join(part for part in key if part != 'unstated')}{': ' if key != ('unstated',) * 2 else ''}"
            f"{', '.join(cells)}"
            for key, cells in lines.items()
        )

    def markdown(self) -> str:
        """The table and its notes as Markdown."""
        headings, lines = self.grid()
        rows = [headings, ["---"] * len(headings), *lines]
        text = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"## {self.title}\n\n{text}\n{notes}\n"

    def rich(self):
        """The table as a `rich.table.Table`, the published figures in a column of their own."""
        from rich.table import Table as RichTable

        headings, lines = self.grid()
        table = RichTable(title=self.title, caption="\n".join(self.notes), caption_justify="left", title_justify="left")
        for heading in headings:
            words = heading in (headings[0], "published")
            table.add_column(
                heading, justify="left" if words else "right", style="dim" if heading == "published" else None
            )
        for cells in lines:
            table.add_row(*(cell.replace("; ", "\n") for cell in cells))
        return table


def write_tables(tables: list[Table], directory: Path, origin: dict[str, Any]) -> list[Path]:
    """Write one JSON and one Markdown file a table.

    Args:
        tables: to write.
        directory: created if missing.
        origin: what the tables were made of; it is added to each file.

    Raises:
        ConfigError: the directory cannot be written.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for table in tables:
            data = json.dumps({**table.as_dict(), "origin": origin}, indent=2, ensure_ascii=False, allow_nan=False)
            lines = "".join(f"- {key}: {value}\n" for key, value in origin.items())
            for suffix, text in ((".json", data), (".md", f"{table.markdown()}\n{lines}")):
                path = directory / f"{table.name}{suffix}"
                write_text_atomic(path, text)
                written.append(path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(directory)) from None
    return written
