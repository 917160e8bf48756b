"""A driver for the tests to kill: writes a trial's record step by step while its tracker sends it.

killed_driver.py ROOT STUDY URI FIRST LAST PAUSE FINISH: steps FIRST … LAST-1, PAUSE seconds after each.
"""

import sys
import time
from pathlib import Path

from tests.helpers.mlflow_store import MLflowStore
from uvar_tune.cli.main import log_to_stream

root, study, uri, first, last, pause, finish = sys.argv[1:]
store = MLflowStore(Path(root))
with log_to_stream():
    tracker = store.tracker(study, uri)
    tracker.start_study({}, {})
    tracker.start_trial(0, store.trial(study, 0), {"loss.lambda_1": 0.5}, {})
    for i in range(int(first), int(last)):
        store.write(study, 0, range(i, i + 1))
        time.sleep(float(pause))
    if finish == "finish":
        tracker.finish_trial(0, "FINISHED", {"fid": 1.0})
        tracker.finish_study("FINISHED")
    print("closed" if tracker.close(60) else "left", flush=True)
