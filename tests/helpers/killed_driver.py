"""A driver for the tests to kill: writes a trial's record step by step while its sink sends it.

killed_driver.py ROOT STUDY URI FIRST LAST PAUSE FINISH: steps FIRST … LAST-1, PAUSE seconds after each.
"""

import sys
import time
from pathlib import Path

from tests.helpers.mlflow_place import Place
from uvar_tune.cli.main import log_to_stdout

root, study, uri, first, last, pause, finish = sys.argv[1:]
place = Place(Path(root))
with log_to_stdout():
    sink = place.sink(study, uri)
    sink.start_study({}, {})
    sink.watch_trial(0, place.trial(study, 0), {"loss.lambda_1": 0.5}, {})
    for i in range(int(first), int(last)):
        place.write(study, 0, range(i, i + 1))
        time.sleep(float(pause))
    if finish == "finish":
        sink.finish_trial(0, "FINISHED", {"fid": 1.0})
        sink.finish_study("FINISHED")
    print("closed" if sink.close(60) else "left", flush=True)
