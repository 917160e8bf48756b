"""How a study looks on MLflow's page: names of runs, the description of the study, tags that say who won."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from urllib.parse import urlencode

SEARCH = "search"  # the phase of the trials of the search
_SYMBOLS = {"loss.lambda_1": "λ1", "loss.lambda_2": "λ2"}
_TWO_SIDED_95 = 1.96  # standard deviations
_MAX_VALUES = 5  # in the name of a run
DESCRIPTION = "mlflow.note.content"
_RUN, _PAGE = "{{run}}", "{{page}}"  # known when the tag is sent
_COMPARED = re.compile(r"\{\{trials ([\d,]+)\}\}")
_BASELINE = 0  # number of the baseline's trial


def phase_of(key: int | str) -> str:
    """The phase of a trial (``7``) or replicate (``noise/0``)."""
    return key.partition("/")[0] if isinstance(key, str) else SEARCH


def run_name(key: int | str, kind: str, values: dict[str, Any]) -> str:
    """Name of a trial's run, such as ``t007 λ1 0.03 λ2 0.05 normal``, ``t000 baseline`` or ``noise r003 baseline``.

    Args:
        key: trial number, or phase and number of a replicate.
        kind: ``search`` or ``baseline``; of a replicate, its arm.
        values: searched values by dotted name.
    """
    if isinstance(key, str):
        phase, _, number = key.partition("/")
        return f"{phase} r{int(number):03d} {kind}" if number.isdigit() else key
    if kind == "baseline":
        return f"t{key:03d} baseline"
    names = [*_SYMBOLS, *(name for name in values if name not in _SYMBOLS and not name.startswith("inference."))]
    words = [_word(name, values[name]) for name in names if name in values]
    return " ".join([f"t{key:03d}", *words[:_MAX_VALUES], *["…"] * (len(words) > _MAX_VALUES)])


def _word(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{_SYMBOLS.get(name, name.rpartition('.')[2])} {text}"


def difference_text(
    value: float, baseline: float, verdict: dict[str, Any] | None = None, noise_sd: float | None = None
) -> str:
    """A trial's difference from the baseline, and whether it is noise.

    Args:
        value: of the study metric in the search.
        baseline: the baseline's value in the search.
        verdict: the trial's `Verdict` as plain data, over fresh pairs of seeds.
        noise_sd: standard deviation of a replicate of the baseline.
    """
    if verdict is not None:
        low, high = verdict["low"], verdict["high"]
        interval = "" if low is None else f" [{low:+.3g}, {high:+.3g}]"
        return f"{verdict['difference']:+.3g}{interval}, {verdict['pairs']} pairs of seeds"
    difference = value - baseline
    relative = f" ({difference / baseline:+.1%})" if baseline else ""
    if noise_sd is None:
        return f"{difference:+.3g}{relative}, one seed, noise unknown"
    inside = is_within_noise(difference, noise_sd)
    return f"{difference:+.3g}{relative}, one seed, {'within' if inside else 'beyond'} noise"


def is_within_noise(difference: float, noise_sd: float) -> bool:
    """Whether two scores of one seed each differ by no more than 95 % of the differences of equal networks do.

    Args:
        difference: of the scores.
        noise_sd: standard deviation of a replicate of the baseline.
    """
    return abs(difference) <= _TWO_SIDED_95 * math.sqrt(2) * noise_sd


def study_description(
    study: str, question: str, state: str, best: int | None = None, *, links: bool = True
) -> dict[str, str]:
    """The tag that MLflow displays as the description of a study's run (Markdown); see `fill`.

    Args:
        study: name of the study.
        question: `study.question`.
        state: what has been reached, in a sentence or two.
        best: number of the best trial, which has been exported; its figure and commands are added.
        links: whether pages and figures in MLflow are named.
    """
    lines = [f"**State:** {literal(state)}"]
    asked = f"**Question:** {literal(question) or 'none is given'}"
    commands = [(f"uvar-tune show {study}", "the table of all trials")]
    if best is not None and links:
        lines.append(
            f"[Ranked trials](#{_PAGE}) · [charts](#{_PAGE}&compareRunsMode=CHART) · "
            f"[best and baseline](#{_trials(best, _BASELINE)}) · "
            f"[report](get-artifact?path=report/report.html&run_uuid={_RUN})"
        )
    lines.append(asked)
    if best is not None:
        directory = f"ROOT/{study}"
        commands += [
            (f"uvar-tune sweep {directory}/study.yaml --phase confirm", "a verdict, over fresh seeds"),
            (f"uvar-tune train {directory}/export/{study}-{best:05d}.yaml", f"a final run of trial {best}"),
            (f"uvar-tune train {directory}/export/{study}-{best:05d}.yaml --replay", f"trial {best} again, compared"),
        ]
    width = max(len(command) for command, _ in commands)
    code = "\n".join(f"    {command:<{width}}  # {purpose}" for command, purpose in commands)
    lines += ["**Commands** (ROOT is `run.root`, by default `runs`):", code]
    if best is not None and links:
        lines.append(f"![parallel coordinates](get-artifact?path=report/study.png&run_uuid={_RUN})")
    return {DESCRIPTION: "\n\n".join(lines)}


def trial_description(study: str, number: int) -> dict[str, str]:
    """The description of a trial's run: how to see it and to run it again."""
    commands = (
        f"uvar-tune show {study} --trial {number}",
        f"uvar-tune export --study {study} --trial {number} --unconfirmed  # prints the path of FILE",
        "uvar-tune train FILE --replay  # repeats the trial and compares its numbers",
    )
    code = "\n".join(f"    {command}" for command in commands)
    return {DESCRIPTION: f"Trial {number} of study {study}. Run it again:\n\n{code}"}


def _trials(*numbers: int) -> str:
    """Placeholder of the page that compares trials."""
    return f"{{{{trials {','.join(map(str, numbers))}}}}}"


def fill(tags: dict[str, str], run_id: str, page: str | None, runs: dict[str, str], experiment: str) -> dict[str, str]:
    """The tags with ids and addresses in the description, which are known when it is sent.

    Args:
        tags: of the run.
        run_id: of the run.
        page: address of the saved view behind ``#``.
        runs: key of a trial → id of its run.
        experiment: id of the experiment.
    """
    if DESCRIPTION not in tags:
        return tags

    def compared(match: re.Match) -> str:
        ids = list(dict.fromkeys(runs[number] for number in match.group(1).split(",") if number in runs))
        query = {"runs": json.dumps(ids), "experiments": json.dumps([experiment])}
        return f"/compare-runs?{urlencode(query)}"

    text = tags[DESCRIPTION].replace(_RUN, run_id).replace(_PAGE, page or "/experiments")
    return {**tags, DESCRIPTION: _COMPARED.sub(compared, text)}


def literal(text: str) -> str:
    """Text of a user in Markdown that displays it letter by letter, in one line."""
    return "".join(
        letter if letter.isalnum() or letter in " .,?" or ord(letter) > 127 else f"&#{ord(letter)};"
        for letter in " ".join(text.split())
    )
