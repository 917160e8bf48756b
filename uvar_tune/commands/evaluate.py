"""A run of `uvar-tune evaluate`: checkpoints opened, tables made, printed, written and logged."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from uvar_tune import provenance
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import Origin, Protocol
from uvar_tune.io.hashing import content_hash
from uvar_tune.io.outputs import check_directory
from uvar_tune.paper.checkpoint_evaluation import CheckpointEvaluation, LoadedCheckpoint, Plan, sampling_seeds
from uvar_tune.paper.published import BASELINE, OURS
from uvar_tune.paper.suites import Comparison, evaluate_checkpoints
from uvar_tune.paper.tables import Number, Table, write_tables
from uvar_tune.pipeline import resolve_device
from uvar_tune.study_dir import StudyDirectory, resolve_root

logger = logging.getLogger(__name__)

_EVERY_SEC = 5.0  # between two lines of progress


@dataclass(frozen=True)
class Request:
    """The command line of the door, in its words."""

    checkpoint: str
    suites: list[str]
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
    """Make the tables asked for, print them, write them as JSON and Markdown, log them.

    Raises:
        ConfigError: what the command line names cannot be used, or cannot be compared (before anything is computed).
    """
    began_sec = time.process_time()
    if request.baseline is None and request.baseline_cfg_scale is not None:
        raise ConfigError("there is no baseline whose CFG scale this could be", where="--baseline-cfg-scale")
    request = dataclasses.replace(request, device=resolve_device(request.device))
    opened = {OURS: LoadedCheckpoint(request.checkpoint)} | (
        {BASELINE: LoadedCheckpoint(request.baseline)} if request.baseline else {}
    )
    config = opened[OURS].config
    root = resolve_root(request.root or config.run.root)
    samples = request.samples or config.evaluation.samples
    files = StudyDirectory(root, run_name(opened, request, samples))
    try:
        files.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{files.cache} cannot be written: {error.strerror}", where="--root") from None
    directory = Path(request.out) if request.out else files.directory
    check_directory(directory, "--out" if request.out else "--root")
    plan = Plan(
        cache=files.cache,
        record=files.directory / "prepare.jsonl",
        samples=samples,
        seeds=sampling_seeds(config.study.seed),
        device=request.device,
        tokenizer=request.tokenizer,
        progress=lambda text: _progress(text),
    )
    given = {OURS: request.cfg_scale, BASELINE: request.baseline_cfg_scale}
    subjects = [
        CheckpointEvaluation(method, opened[method], plan, cfg_scale=given[method])
        for method in (BASELINE, OURS)
        if method in opened
    ]
    tables = evaluate_checkpoints(Comparison(tuple(subjects), request.imagenet_c, request.ood), request.suites)
    about = {one.method: one.about for one in subjects} | {"samples": samples, **provenance.origin()}
    console = Console(width=None if Console().is_terminal else 160)
    for table in tables:
        console.print(table.rich())
    written = write_tables(tables, directory, about)
    if request.log:
        log(files, tables, written, about)
    logger.info(f"written: {', '.join(path.name for path in written)} in {directory}")
    logger.info(f"CPU seconds: {time.process_time() - began_sec:.0f}")
    return tables


def run_name(opened: dict[str, LoadedCheckpoint], request: Request, samples: int) -> str:
    """One run for each pair of checkpoints, point and code, whichever suites are asked for, and when."""
    asked = {method: str(one.directory.resolve()) for method, one in opened.items()}
    asked |= {
        "samples": samples,
        "cfg_scales": [request.cfg_scale, request.baseline_cfg_scale],
        "device": request.device,
        "source": provenance.source_hash(),
    }
    return f"evaluate-{opened[OURS].config.study.name[:40]}-{content_hash(asked)[:8]}"


def log(files: StudyDirectory, tables: list[Table], written: list[Path], about: dict) -> None:
    """All numbers (the baseline's below `baseline/`), each protocol and origin as a parameter, the files as artifacts."""
    sink = files.sink()
    numbers = {
        name if method == OURS else f"{method}/{name}": number
        for table in tables
        for method, row in table.rows.items()
        for name, number in row.items()
    }
    sink.start_study(params={**about, **protocols_of(numbers)}, tags={"uvar.kind": "evaluation"})
    sink.log_study_metrics({name: number.value for name, number in numbers.items()})
    for path in written:
        sink.log_artifact(None, path, "evaluation")
    sink.finish_study("FINISHED")
    sink.close()


def protocols_of(numbers: dict[str, Number]) -> dict[str, dict]:
    """Parameters `protocol.NAME` and `origin.NAME`, NAME being the first of the numbers that share both."""
    first: dict[tuple[Protocol, Origin], str] = {}
    for name, number in numbers.items():
        first.setdefault((number.protocol, number.origin), name)
    return {
        f"{what}.{name}": found.as_dict()
        for pair, name in first.items()
        for what, found in zip(("protocol", "origin"), pair, strict=True)
    }


def _progress(text: str) -> Callable[[int, int], None]:
    """Says ``text: done of total`` every few seconds, and at the end."""
    told_sec = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_sec
        if done == total or time.monotonic() - told_sec > _EVERY_SEC:
            logger.info(f"  {text}: {done:,} of {total:,}")
            told_sec = time.monotonic()

    return tell
