"""The table of `bench search`: made from a finished study, written, read and checked.

A study with `inference.search: per_checkpoint` stores each trial's score at every CFG scale on selection seeds (A), and
on evaluation seeds (B) the one at the best scale. The missing scores on seeds B are computed here from the trials'
checkpoints. The score on seeds B that the study has stored is computed again as a check.

    {"about": {study, space, protocol, made_by},
     "rows": [{"params": {name: value}, "seed": int, "scores": [[cfg_scale, fid_a, fid_b], …]}, …]}
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from uvar_tune.errors import ConfigError
from uvar_tune.io.atomic import write_text_atomic
from uvar_tune.seeds import EVALUATION, SAMPLING
from uvar_tune.specs import Assets

logger = logging.getLogger(__name__)

TABLE = Path(__file__).parent / "tables" / "search_table.json"
_TOLERANCE = 1e-3  # relative; rounding on another machine stays below it, other seeds or checkpoints do not


def load_table(path: Path | str = TABLE) -> list[dict[str, Any]]:
    """The rows of a table, one per trained configuration.

    Raises:
        ConfigError: the file cannot be read, or a row is malformed, differs from the first in its parameters or CFG
            scales, or holds a score that is not finite.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", where=str(path)) from None
    rows = tree.get("rows") if isinstance(tree, dict) else None
    if not isinstance(rows, list) or len(rows) < 2:
        raise ConfigError("a table is {about, rows}, with at least two rows", where=str(path))
    for number, row in enumerate(rows):
        _check_row(row, rows[0], f"{path}, row {number}")
    return rows


def make_table(study: str, root: str | None, path: Path | str) -> None:
    """Write the table of a finished study below ``root`` (`run.root`) to ``path``; scores its checkpoints on seeds B.

    Raises:
        ConfigError: no such study, one that does not search the CFG scale per checkpoint, a trial without a score, a
            checkpoint that is missing or does not reproduce the stored score, a file that cannot be written.
    """
    from uvar_tune.search.load import load_results
    from uvar_tune.study_dir import StudyDirectory, resolve_root
    from uvar_tune.trial.assets import prepare

    files = StudyDirectory(resolve_root(root), study)
    config, where = files.load_config(), f"study {study!r}"
    if (
        config.inference.search != "per_checkpoint"
        or config.inference.search_axes != ("cfg_scale",)
        or config.study.metric != "fid"
    ):
        raise ConfigError(
            "has no FID at each CFG scale; needed: metric fid, inference.search 'per_checkpoint' over cfg_scale alone",
            where=where,
        )
    results = load_results(config, files)
    trials = [trial for trial in results.trials if trial.kind != "baseline"]
    unscored = next((trial for trial in trials if trial.value is None), None)
    if len(trials) < 2 or unscored is not None:
        raise ConfigError(
            f"{f'trial {unscored.number}' if unscored else 'all but one trial'} has no score; finish the study first",
            where=where,
        )
    assets = prepare(config, files.cache, files.directory / "prepare.jsonl")
    rows = []
    for count, trial in enumerate(trials, 1):
        rows.append(_row(config, trial, assets))
        logger.info(f"seeds B: {count} of {len(trials)} checkpoints")
    about = {
        "study": study,
        "space": {name: entry.model_dump(mode="json") for name, entry in config.space.items()},
        "protocol": results.protocol,
        "made_by": trials[0].provenance,
    }
    try:
        write_text_atomic(path, _text(about, rows))
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(path)) from None


def _row(config, trial, assets: Assets) -> dict[str, Any]:
    """Scores of a trial at the configured CFG scales: stored ones on selection seeds, new ones on evaluation seeds."""
    from uvar_tune.config.space import searched_entries
    from uvar_tune.pipeline import restore
    from uvar_tune.trial.scoring import ImageSampler, SampleScorer, sample_labels

    var, vqvae, _ = restore(trial.directory)
    draw = ImageSampler(config, var, vqvae, sample_labels(config, assets, config.evaluation.samples))
    seed = trial.seeds[SAMPLING[EVALUATION]]
    scorer = SampleScorer(config, assets, seed=seed)
    stored_a = {point["cfg_scale"]: point["fid"] for point in trial.inference_points if point["seeds"] == "selection"}
    scores = [
        [scale, stored_a[scale], scorer.fidelity(scorer.features(draw({"cfg_scale": scale}, seed)))["fid"]]
        for scale in config.inference.search_cfg_scales
    ]
    stored_b = next(point for point in trial.inference_points if point["seeds"] == "evaluation")
    fid = next((fid_b for scale, _, fid_b in scores if scale == stored_b["cfg_scale"]), None)
    if fid is not None and not math.isclose(fid, stored_b["fid"], rel_tol=_TOLERANCE):
        raise ConfigError(
            f"its checkpoint gives FID {fid:.6g} at CFG {stored_b['cfg_scale']:g} on seeds B, the study stored "
            f"{stored_b['fid']:.6g}",
            where=f"trial {trial.number}",
        )
    return {
        "params": {name: trial.params[name] for name in searched_entries(config)},
        "seed": trial.seeds["training"],
        "scores": scores,
    }


def _text(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """JSON with one line per row, for readable diffs."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    return f'{{"about": {json.dumps(about, allow_nan=False)},\n"rows": [\n{lines}\n]}}\n'


def _check_row(row: Any, first: dict[str, Any], where: str) -> None:
    if (
        not isinstance(row, dict)
        or not {"params", "seed", "scores"} <= set(row)
        or not row["params"]
        or not row["scores"]
    ):
        raise ConfigError("is not {params, seed, scores: [[cfg_scale, fid_a, fid_b], …]}", where=where)
    if any(len(score) != 3 or not all(math.isfinite(value) for value in score) for score in row["scores"]):
        raise ConfigError("each score is [cfg_scale, fid_a, fid_b], all finite", where=where)
    kinds = {name: isinstance(value, str) for name, value in row["params"].items()}
    if kinds != {name: isinstance(value, str) for name, value in first["params"].items()}:
        raise ConfigError(f"parameters {sorted(kinds)} are not those of row 0, {sorted(first['params'])}", where=where)
    if [score[0] for score in row["scores"]] != [score[0] for score in first["scores"]]:
        raise ConfigError("the CFG scales are not those of row 0", where=where)
