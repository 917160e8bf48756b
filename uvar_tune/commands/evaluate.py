"""The command `evaluate`: load checkpoints, make the paper's tables, write them and log them to MLflow."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uvar_tune import provenance
from uvar_tune.config.schema import Config
from uvar_tune.console import progress_callback
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import Origin, Protocol
from uvar_tune.io.hashing import content_hash
from uvar_tune.io.outputs import check_directory
from uvar_tune.paper.checkpoint_evaluation import (
    CheckpointEvaluation,
    EvaluationSettings,
    LoadedCheckpoint,
    sampling_seeds,
)
from uvar_tune.paper.measurements import Comparison, evaluate_checkpoints
from uvar_tune.paper.published import BASELINE, OURS
from uvar_tune.paper.tables import Number, Table, write_tables
from uvar_tune.pipeline import resolve_device
from uvar_tune.study_dir import StudyDirectory, resolve_root

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The options of the command.

    Attributes:
        checkpoint: checkpoint directory, or directory of a trial.
        tables: names of the tables to make.
        baseline: checkpoint to compare with.
        samples: number of generated images; None for `evaluation.samples`.
        cfg_scale: CFG scale of the checkpoint; None searches it as its study did.
        baseline_cfg_scale: the same for the baseline.
        root: root of studies and caches; None for `run.root`.
        out: directory for JSON and Markdown; None for one in the root.
        imagenet_c: ImageNet-C, laid out KIND/SEVERITY/CLASS/IMAGE; None for `digits-c8`.
        ood: out-of-distribution images, laid out CLASS/IMAGE.
        tokenizer: where the tokenizer is now; None for where the checkpoint says.
        device: to compute on; `auto` for a GPU if there is one.
        log: log numbers and files to MLflow.
    """

    checkpoint: str
    tables: list[str]
    baseline: str | None = None
    samples: int | None = None
    cfg_scale: float | None = None
    baseline_cfg_scale: float | None = None
    root: str | None = None
    out: str | None = None
    imagenet_c: str | None = None
    ood: str | None = None
    tokenizer: str | None = None
    device: str = "auto"
    log: bool = True


def run_evaluation(request: Request) -> list[Table]:
    """Make the requested tables, write them as JSON and Markdown, log them.

    Raises:
        ConfigError: an option that cannot be used, or checkpoints that cannot be compared; raised before anything is
            computed.
    """
    start_sec = time.process_time()
    if request.baseline is None and request.baseline_cfg_scale is not None:
        raise ConfigError("there is no baseline whose CFG scale this could be", where="--baseline-cfg-scale")
    request = dataclasses.replace(request, device=resolve_device(request.device))
    checkpoints = {OURS: LoadedCheckpoint(request.checkpoint)}
    if request.baseline:
        checkpoints = {BASELINE: LoadedCheckpoint(request.baseline), **checkpoints}
    config = checkpoints[OURS].config
    samples = request.samples or config.evaluation.samples
    files = _files(request, config, run_name(checkpoints, request, samples))
    directory = Path(request.out) if request.out else files.directory
    check_directory(directory, "--out" if request.out else "--root")
    settings = EvaluationSettings(
        cache=files.cache,
        record=files.directory / "prepare.jsonl",
        samples=samples,
        seeds=sampling_seeds(config.study.seed),
        device=request.device,
        tokenizer=request.tokenizer,
        progress=progress_callback,
    )
    cfg_scales = {OURS: request.cfg_scale, BASELINE: request.baseline_cfg_scale}
    evaluations = tuple(
        CheckpointEvaluation(method, checkpoint, settings, cfg_scale=cfg_scales[method])
        for method, checkpoint in checkpoints.items()
    )
    tables = evaluate_checkpoints(Comparison(evaluations, request.imagenet_c, request.ood), request.tables)
    origin = {one.method: one.description for one in evaluations} | {"samples": samples, **provenance.origin()}
    written = write_tables(tables, directory, origin)
    if request.log:
        log_tables(files, tables, written, origin)
    logger.info(f"written: {', '.join(path.name for path in written)} in {directory}")
    logger.info(f"CPU seconds: {time.process_time() - start_sec:.0f}")
    return tables


def _files(request: Request, config: Config, name: str) -> StudyDirectory:
    """The directory of this evaluation in the root, whose cache can be written."""
    files = StudyDirectory(resolve_root(request.root or config.run.root), name)
    try:
        files.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{files.cache} cannot be written: {error.strerror}", where="--root") from None
    return files


def run_name(checkpoints: dict[str, LoadedCheckpoint], request: Request, samples: int) -> str:
    """One name for each set of checkpoints, options and source code, whichever tables are requested."""
    key: dict[str, Any] = {method: str(one.directory.resolve()) for method, one in checkpoints.items()}
    key |= {
        "samples": samples,
        "cfg_scales": [request.cfg_scale, request.baseline_cfg_scale],
        "device": request.device,
        "source": provenance.source_hash(),
    }
    return f"evaluate-{checkpoints[OURS].config.study.name[:40]}-{content_hash(key)[:8]}"


def log_tables(files: StudyDirectory, tables: list[Table], written: list[Path], origin: dict[str, Any]) -> None:
    """Log numbers (the baseline's as `baseline/NAME`), protocols and origins as parameters, files as artifacts."""
    tracker = files.open_tracker()
    numbers = {
        name if method == OURS else f"{method}/{name}": number
        for table in tables
        for method, row in table.rows.items()
        for name, number in row.items()
    }
    tracker.start_study(params={**origin, **shared_protocols(numbers)}, tags={"uvar.kind": "evaluation"})
    tracker.log_study_metrics({name: number.value for name, number in numbers.items()})
    for path in written:
        tracker.log_artifact(None, path, "evaluation")
    tracker.finish_study("FINISHED")
    tracker.close()


def shared_protocols(numbers: dict[str, Number]) -> dict[str, dict]:
    """Parameters `protocol.NAME` and `origin.NAME`, NAME being the first of the numbers that share both."""
    first: dict[tuple[Protocol, Origin], str] = {}
    for name, number in numbers.items():
        first.setdefault((number.protocol, number.origin), name)
    return {
        f"{what}.{name}": part.as_dict()
        for pair, name in first.items()
        for what, part in zip(("protocol", "origin"), pair, strict=True)
    }
