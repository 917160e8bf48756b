"""A whole study as the driver runs it, what a server shows of it, and the command that sends it again."""

import contextlib
import io
import os
import re
import subprocess
from unittest import mock

from tests.helpers.mlflow_store import record
from tests.helpers.search_cases import ended, scored
from uvar_tune.cli.main import main
from uvar_tune.commands.summary import log_summary
from uvar_tune.config.schema import Config
from uvar_tune.search.load import load_results
from uvar_tune.search.replicates import Replicates
from uvar_tune.search.study import Search
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.tracking.metrics_log import MetricsLog
from uvar_tune.tracking.parameters import (
    datasets,
    effective_parameters,
    provenance_tags,
    run_parameters,
    saved_view,
    score_parameters,
    source_tags,
    study_parameters,
    study_tags,
)
from uvar_tune.tracking.presentation import phase_of, run_name
from uvar_tune.trial.trial import write_config

CONFIG = Config.model_validate(
    {
        "study": {"name": "whole", "trials": 3},
        "training": {"images": 640, "warmup_images": 0},
        "space": {
            "loss.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 1.0, "log": True},
            "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4},
        },
    }
)
PROVENANCE = {"commit": "abc", "data_sha256": {"train": "12" * 32, "validation": "34" * 32}}


def sync(store, *options, study="whole", **variables):
    """`uvar-tune sync` on a study, with these environment variables, in this process, which has imported MLflow."""
    command = ["sync", "--study", study, "--root", str(store.root), *options]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": store.uri, **variables}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(command)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def run_study(store):
    """Three trials as the driver runs them, the second stopped at a rung and the last one diverging, and a replicate of one."""
    files = StudyDirectory(store.root, "whole")
    files.create()
    files.create_or_verify(CONFIG)
    search, tracker = Search(CONFIG, files.storage_url(CONFIG)), store.tracker("whole")
    tags = {**provenance_tags(PROVENANCE), **study_tags("whole", "")}
    tracker.start_study(study_parameters(CONFIG), tags)
    tracker.save_view(**saved_view(CONFIG, "minimize"))
    tracker.log_artifact(None, files.config, "")
    images = {"train": 1438, "validation": 359}
    MetricsLog(files.directory / "prepare.jsonl").event("prepared", reconstruction_mse=0.02, images=images)
    tracker.log_datasets(datasets(CONFIG, PROVENANCE["data_sha256"], images))
    tracker.log_study_metrics({"prepare/reconstruction_mse": 0.02})
    for work, phase in (
        (search, "trial"),
        (Replicates(CONFIG, files.storage_url(CONFIG), "noise", {"baseline": {}}, 1), "noise"),
    ):
        while (proposal := work.ask()) is not None:
            _run(files, work, phase, proposal, tracker)
    log_summary(load_results(CONFIG, files), tracker, [])
    tracker.finish_study("FINISHED")
    return tracker


def _run(files, work, phase, proposal, tracker):
    number = proposal.number
    searched = phase == "trial"
    key, directory = (
        (number, files.trial(number)) if searched else (f"{phase}/{number}", files.directory / phase / "00000")
    )
    write_config(directory, CONFIG.with_values(proposal.values))
    tags = {"uvar.kind": proposal.kind, "uvar.phase": phase_of(key), "uvar.attempt": "1", **source_tags(PROVENANCE)}
    name = run_name(key, proposal.kind, proposal.values)
    parameters = run_parameters(CONFIG, proposal.values)
    tracker.start_trial(key, directory, parameters, tags, name=name, phase=phase_of(key))
    metrics_log = record(directory, range(10), proposal.attempt)
    if number in (1, 2):
        outcome = {1: "stopped", 2: "diverged"}[number]
        work.prune(number, ended(outcome), PROVENANCE)
        tracker.finish_trial(key, "KILLED" if outcome == "stopped" else "FAILED")
        return
    metrics_log.event("score", images=640, cfg_scale=1.5, seeds="selection", fid=2.0)
    metrics_log.metrics(640, {"fid": 2.0})
    scores, params = {"fid": 2.0, "f1": 0.5}, {"inference.cfg_scale": 1.5}
    protocol, ran = {"samples": 1000, "reference": "4677e795", "divisor": ""}, {"loss.lambda_1": 0.25}
    work.complete(
        number,
        scored(
            2.0,
            {
                "scores": scores,
                "inference_parameters": params,
                "protocol": protocol,
                "effective_parameters": ran,
            },
        ),
        PROVENANCE,
    )
    tracker.finish_trial(
        key, "FINISHED", scores, {**params, **effective_parameters(ran), **score_parameters(protocol, proposal.seeds)}
    )


def content(store):
    """Everything that MLflow has of the study by study, phase or trial, without ids and the times of study metrics."""
    runs, active = {}, store.active_runs()
    ids = re.compile("|".join(run.info.run_id for run in active))
    for run in active:
        run_id = run.info.run_id
        tags = {key: ids.sub("ID", tag) for key, tag in run.data.tags.items() if key != "mlflow.parentRunId"}
        name = tags.get("uvar.trial") or tags["mlflow.runName"]
        assert name not in runs
        rows = store.query(
            "select key, step, value, case when key like 'best/%' or key like 'prepare/%' then 0 else timestamp "
            "end from metrics where run_uuid = ?",
            run_id,
        )
        runs[name] = (run.info.status, sorted(rows), run.data.params, tags, store.artifacts(run_id))
    return runs
