"""A whole study as the driver runs it, what a server shows of it, and the door that sends it again."""

import os
import subprocess
import sys

from uvar_tune.config import Config
from uvar_tune.study.files import StudyFiles
from uvar_tune.study.search import Search
from uvar_tune.tracking.parameters import profiled, run_parameters, scored_under, study_parameters
from uvar_tune.tracking.record import Recorder

CONFIG = Config.model_validate({
    "study": {"name": "whole", "trials": 3}, "training": {"images": 640, "warmup_images": 0}, "space": {
        "objective.lambda_1": {"role": "scientific", "type": "float", "low": 0.01, "high": 1.0, "log": True},
        "inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4}}})


def sync(place, *options, **variables):
    """`python -m uvar_tune.sync` on the study, in a process of its own with these environment variables."""
    command = [sys.executable, "-m", "uvar_tune.sync", "--study", "whole", "--root", str(place.root), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


def run_study(place):
    """Three trials as the driver runs them, the last one diverging."""
    files = StudyFiles(place.root, "whole")
    files.prepare()
    files.claim(CONFIG)
    search, sink = Search(CONFIG, files.storage_url(CONFIG)), place.sink("whole")
    sink.start_study(study_parameters(CONFIG), {"uvar.commit": "abc"})
    Recorder(files.directory / "prepare.jsonl").event("prepared", reconstruction_mse=0.02)
    sink.study_metrics({"prepare/reconstruction_mse": 0.02})
    while (proposal := search.ask()) is not None:
        number = proposal.number
        values = run_parameters(CONFIG, proposal.values)
        sink.watch_trial(number, place.trial("whole", number), values, {"uvar.kind": proposal.kind, "uvar.attempt": "1"})
        recorder = place.write("whole", number, range(10), proposal.attempt)
        if number == 2:
            search.prune(number, "diverged", {"made_by": {"commit": "abc"}})
            sink.finish_trial(number, "FAILED")
            continue
        recorder.event("score", images=640, cfg_scale=1.5, seeds="a", fid=3.0 - number)
        recorder.metrics(640, {"fid": 3.0 - number})
        scores, params = {"fid": 3.0 - number, "f1": 0.5}, {"inference.cfg_scale": 1.5}
        protocol = {"samples": 1000, "reference": "4677e795", "divisor": ""}
        search.complete(number, 3.0 - number, {"scores": scores, "params": params, "protocol": protocol,
                                               "made_by": {"commit": "abc"}})
        about = {**{name: params[name] for name in profiled(CONFIG)}, **scored_under(protocol, proposal.seeds)}
        sink.finish_trial(number, "FINISHED", scores, about)
    sink.study_metrics({"best/fid": 2.0, "best/f1": 0.5})
    sink.finish_study("FINISHED")
    return sink


def content(place):
    """Everything that the database shows of the study, run by run, ids and the clock set aside."""
    found = {}
    for name, run_id, status in place.query("select name, run_uuid, status from runs where lifecycle_stage = 'active'"):
        assert name not in found
        tags = {key: value for key, value in place.tags(run_id).items() if key != "mlflow.parentRunId"}
        rows = place.query("select key, step, value, case when key like 'best/%' or key like 'prepare/%' then 0 else timestamp "
                           "end from metrics where run_uuid = ?", run_id)
        found[name] = (status, sorted(rows), place.params(run_id), tags, place.artifacts(run_id))
    return found
