"""Sections of the page on fresh seeds: verdicts, the 2×2 design, the noise of the baseline."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from uvar_tune.analysis.results import StudyResults
from uvar_tune.reporting import fields
from uvar_tune.reporting.sections import Raw, grid

_BASELINE = "baseline"
_DOUBT = (
    "is a candidate, not a result: its score includes selection bias (winner's curse), and another training seed alone "
    "changes such a score by several per cent. "
    "Repeat it and the baseline on fresh seeds: uvar-tune sweep SPACE.yaml --phase confirm."
)
_FROM = {"not distinguishable": "from"}  # better than, worse than


def headline(results: StudyResults) -> str:
    """A note with the verdict on the best trial, or why it has none."""
    best, compared = results.best, fields.against_baseline(results)
    verdict = results.verdict(best)
    if verdict is None:
        why = results.untested.get(f"trial {best.number}")
        no = f"It is in the confirmation and has no verdict ({escape(why)}). " if why else ""
        return _note(
            "",
            "Verdict: unconfirmed.",
            f"{escape(compared) + '. ' if compared else ''}The best of "
            f"{len(results.ranked()):,} {_DOUBT} {no}{_others(results)}",
        )
    word = verdict["verdict"]
    value, baseline = fields.format_value(verdict["value"]), fields.format_value(verdict["baseline"])
    sentences = [
        f"{fields.short(results.metric)} {value} against {baseline}, "
        f"difference {_signed(verdict['difference'])}{_interval(verdict)} over {verdict['pairs']} pairs of fresh seeds."
    ]
    if verdict["selection_bias"]:
        estimate = "overestimated" if verdict["selection_bias"] > 0 else "underestimated"
        sentences.append(f"The search {estimate} it by {fields.format_value(abs(verdict['selection_bias']), 3)}.")
    if word == "not distinguishable" and verdict["seeds_needed"]:
        sentences.append(f"About {verdict['seeds_needed']:,} pairs would detect a true difference of this size.")
    if verdict["note"]:
        sentences.append(f"{verdict['note'][0].upper()}{verdict['note'][1:]}.")
    kind = {"better": "good", "worse": "bad"}.get(word, "")
    return _note(
        kind,
        f"Verdict on trial {best.number}: {word} {_FROM.get(word, 'than')} the baseline.",
        f"{escape(' '.join(sentences))} {_others(results)}",
    )


def _note(kind: str, head: str, text: str) -> str:
    return f'<p class="note{" " + kind if kind else ""}"><b>{escape(head)}</b> {text.strip()}</p>'


def _others(results: StudyResults) -> str:
    own = f"trial {results.best.number}"
    better = [arm for arm, one in results.verdicts.items() if one["verdict"] == "better" and arm != own]
    also = " as well" if own in results.verdicts and results.verdicts[own]["verdict"] == "better" else ""
    return escape(f"Better than the baseline{also}: {', '.join(better)}.") if better else ""


def verdicts(results: StudyResults) -> str:
    """A row for each arm of the phase `confirm`, then those without a verdict and why."""
    rows, marks = [], []
    for one in fields.sorted_verdicts(results):
        p = [value for value in (one["p_adjusted"], one["p_worse_adjusted"]) if value is not None]
        rows.append(
            [
                _compared(one),
                one["verdict"],
                one["value"],
                f"{_signed(one['difference'])}{_interval(one)}",
                one["pairs"],
                f"{min(p):.2g}" if p else None,
                one["seeds_needed"],
                None if one["selection_bias"] is None else _signed(one["selection_bias"]),
                _points(results, one["arm"]),
            ]
        )
        marks.append({"better": "better", "worse": "worse"}.get(one["verdict"], ""))
    if not rows and not results.untested:
        return ""
    controls = {one.get("control", _BASELINE): None for one in results.verdicts.values()}
    for arm in [_BASELINE, *(name for name in controls if name != _BASELINE)]:
        if base := results.confirmed.get(arm):
            rows.append([arm, None, base["mean"], None, None, None, None, None, _points(results, arm)])
            marks.append("base")
    name = fields.short(results.metric)
    heads = [
        "arm",
        "verdict",
        name,
        "difference, 90 % interval",
        "pairs",
        "p (Holm)",
        "pairs needed",
        "selection bias",
        "sampled at",
    ]
    untested = "".join(
        f'<p class="note warn"><b>{escape(arm)}</b> has no verdict: {escape(why)}.</p>'
        for arm, why in results.untested.items()
    )
    return f'<div class="verdicts">{grid(heads, rows, words=(0, 1, 8), marks=marks)}</div>' + untested + _VERDICTS


_VERDICTS = (
    '<p class="soft">Each arm ran under the same fresh seeds as the baseline. Each network was sampled at its own best '
    "point (the table has the median over the seeds). p: paired one-sided test on the side of the difference, the "
    "larger of Student's and of one corrected for skewness, "
    "adjusted for all looks and, by Holm's method, for all arms. Pairs needed: to detect a true difference of "
    "this size with probability 80 %. Selection bias: by how much the search overestimated the arm.</p>"
)


def _compared(one: dict[str, Any]) -> str:
    """The name of an arm, with its control where that is not the baseline."""
    control = one.get("control", _BASELINE)
    return one["arm"] if control == _BASELINE else f"{one['arm']} (against {control})"


def _points(results: StudyResults, arm: str) -> str | None:
    confirmed = results.confirmed.get(arm, {})
    at_bound = confirmed.get("at_bound", [])
    texts = [
        f"{fields.short(name)} {fields.format_value(value, 3)}{' (at the end of its range)' * (name in at_bound)}"
        for name, value in confirmed.get("points", {}).items()
    ]
    return ", ".join(texts) or None


def _interval(one: dict[str, Any]) -> str:
    return "" if one["low"] is None else f" [{_signed(one['low'])}, {_signed(one['high'])}]"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def factorial(results: StudyResults) -> str:
    """The 2×2 design of the two terms: mean on fresh seeds and difference from the plain cross-entropy."""
    arms, means = results.factorial, {arm: one["mean"] for arm, one in results.confirmed.items()}
    if not arms or not set(arms.values()) <= set(means):
        return ""

    def cell(key: str) -> Raw:
        one = results.verdicts.get(arms[key])
        under = f"{_signed(one['difference'])}{_interval(one)}<br>{escape(one['verdict'])}" if one else "the baseline"
        return Raw(f"<b>{fields.format_value(means[arms[key]])}</b><br><span>{under}</span>")

    name = fields.short(results.metric)
    table = grid(
        [name, "without semantic entropy (λ₂ = 0)", "with semantic entropy"],
        [
            ["without second-order term (λ₁ = 0)", cell("none"), cell("semantic")],
            ["with second-order term", cell("second"), cell("both")],
        ],
    )
    gains = {key: means[arms[key]] - means[arms["none"]] for key in ("second", "semantic", "both")}
    separate = gains["second"] + gains["semantic"]
    return (
        f'<div class="factorial">{table}</div><p class="soft">Both terms are {escape(arms["both"])}. Together they '
        f"change the {name} by {_signed(gains['both'])}; their separate effects add up to {_signed(separate)}.</p>"
    )


def baseline_noise(results: StudyResults) -> str:
    """Variance components of the baseline as standard deviations, and the smallest detectable gaps."""
    noise = results.noise
    if not noise:
        return ""
    mean = noise["mean"]
    kinds = {
        "training": "from one training seed to another",
        "sampling": "from one set of sampling seeds to another",
        "replicate": "of a replicate, sampling seeds shared",
    }
    rows = [
        [
            words,
            _sd(noise[kind]["value"]),
            _relative(math.sqrt(noise[kind]["value"]), mean),
            f"{_sd(noise[kind]['low'])} – {_sd(noise[kind]['high'])}",
        ]
        for kind, words in kinds.items()
    ]
    gaps = [
        [f"{gap['pairs']} pairs", gap["gap"], "–" if gap["relative"] is None else f"{gap['relative']:.1%}"]
        for gap in noise["detectable"]
    ]
    name = fields.short(results.metric)
    seeds = f"{noise['training_seeds']} training × {noise['sampling_seeds']} sampling seeds"
    return (
        f"<p>The baseline over {seeds}: mean {name} {fields.format_value(mean)}.{_lead(results)}</p>"
        f'<div class="tables">'
        f"{grid(['standard deviation', name, 'of the mean', '90 % interval'], rows)}"
        f"{grid(['smallest detectable gap', name, 'of the mean'], gaps)}</div>"
        '<p class="soft">A gap is detectable if the paired one-sided test at 5 % finds it with probability 80 %. Seeds '
        "that affect both sides alike make smaller gaps detectable.</p>"
    )


def _lead(results: StudyResults) -> str:
    best, baseline = results.best, results.baseline
    if best is None or baseline is None or best is baseline or baseline.value is None:
        return ""
    lead = abs(best.value - baseline.value)
    enough = next((gap["pairs"] for gap in results.noise["detectable"] if gap["gap"] <= lead), None)
    most = max(gap["pairs"] for gap in results.noise["detectable"])
    power = f"a gap that {enough} pairs would detect" if enough else f"less than {most} pairs would detect"
    return f" The best trial of the search differs by {fields.format_value(lead, 3)} from the baseline: {power}."


def _sd(variance: float) -> str:
    return fields.format_value(math.sqrt(variance), 3)


def _relative(value: float, mean: float) -> str:
    return f"{value / abs(mean):.1%}" if mean else "–"
