"""`make soak`: the sweep killed ten times in one study; anything killed at any moment, study after study, for an hour."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import time
from collections import Counter

import psutil
import pytest

from tests.helpers.faulty_study import RUN, values
from tests.helpers.soaked_study import SEED, TITLES, SoakedStudy

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KILLS = 10
SECONDS = float(os.environ.get("UVAR_SOAK_SEC", 3600))
WHOLE = ("sweep", "gcs", "raylet")  # with these the whole command ends, and the same command is given again
MOST_CRASHES = {
    "sweep": 0,
    "gcs": 2,
    "raylet": 2,
    "worker": 1,
    "controller": 1,
    "driver": 1,
}  # attempts that may count as crashed


@pytest.fixture
def report(capsys):
    def line(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    return line


@pytest.fixture
def study(cli, root, tmp_path):
    """Makes studies; whatever is left of them is killed at the end."""
    made: list[SoakedStudy] = []

    def make(name: str, **changes) -> SoakedStudy:
        made.append(SoakedStudy(cli, root, tmp_path, name, **changes))
        return made[-1]

    yield make
    for one in made:
        for process in one.processes():
            process.kill()


def undisturbed(study, name: str, **changes) -> list[float]:
    calm = study(name, **changes)
    calm.finish()
    return values(calm.directory.parent, name, calm.trials)


def reach(struck: SoakedStudy, sweep: subprocess.Popen, images: float, later_sec: float) -> bool:
    """Wait until ``images`` have been seen, and then some seconds; False where the sweep ended before."""
    deadline = time.monotonic() + 1800
    while struck.images() < images and sweep.poll() is None:
        assert time.monotonic() < deadline, f"{struck.name} does not get to {images:.0f} images\n{struck.text}"
        time.sleep(0.1)
    try:
        sweep.wait(timeout=later_sec)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_the_sweep_is_killed_ten_times(study, report):
    """Moments by images seen, drawn beforehand; where one has been passed already, seconds into the next start."""
    changes = {"trials": 4, "max_concurrent": 2}
    expected = undisturbed(study, "calm-ten", **changes)
    struck, draw = study("killed-ten", **changes), random.Random(SEED)
    moments = sorted(draw.uniform(0, 0.85 * struck.total_images) for _ in range(KILLS))
    for kill, images in enumerate(moments, start=1):
        began, before = time.monotonic(), struck.images()
        sweep = struck.start()
        assert reach(struck, sweep, images, draw.uniform(0, 12 if before >= images else 2)), struck.text
        after = time.monotonic() - began
        struck.kill(psutil.Process(sweep.pid))
        sweep.wait()
        struck.vanish()
        report(
            f"kill {kill} of {KILLS}: the sweep, {after:.0f} s after its start, from {before:,} to {struck.images():,} of "
            f"{struck.total_images:,} images; all its processes gone {time.monotonic() - began - after:.0f} s later"
        )
    struck.finish()
    struck.check(expected, MOST_CRASHES["sweep"])
    again = struck.repeated()
    assert max(again) <= RUN["checkpoint_images"]
    report(
        f"after {KILLS} kills the same {struck.trials} trials with the same values; {len(again)} attempts continued from a "
        f"checkpoint and computed at most {max(again)} images again"
    )


def test_random_kills_for_an_hour(study, report):
    """One random process of one study after the other, at a random moment; what must hold is checked after each."""
    draw, until = random.Random(SEED), time.monotonic() + SECONDS
    expected = undisturbed(study, "calm-hour")
    struck_at, again, missed = Counter(), [0], 0
    for number in itertools.count(1):
        if time.monotonic() >= until:
            break
        if number % len(MOST_CRASHES) == 1:
            kinds = draw.sample(list(MOST_CRASHES), len(MOST_CRASHES))
        kind = kinds[number % len(kinds)]
        one = study(f"soak-{number:03d}", max_concurrent=draw.choice([1, 2]))
        # half of the moments at once, within the few seconds of training; half some seconds later, also in what follows it
        images, later_sec = draw.uniform(-0.2, 0.9) * one.total_images, draw.choice([0, draw.uniform(0, 5)])
        began = time.monotonic()
        sweep = one.start()
        at = strike(one, sweep, kind, images, later_sec, draw)
        if at is not None and kind in WHOLE:
            assert sweep.wait(timeout=1800), one.text
            one.vanish()
            sweep = None
        one.finish(sweep)
        one.check(expected, MOST_CRASHES[kind])
        repeated = one.repeated()
        assert max(repeated, default=0) <= RUN["checkpoint_images"]
        again += repeated
        struck_at[kind] += at is not None
        missed += at is None
        what = (
            f"ended before its {kind} was killed"
            if at is None
            else f"{kind} killed at {at:,} of {one.total_images:,} images"
        )
        report(
            f"{number}: {what}; same trials, same values, each record once; again {repeated or 'nothing'}; "
            f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}"
        )
        shutil.rmtree(one.directory)
    assert struck_at.total() > 0
    report(
        f"{struck_at.total()} kills in {SECONDS:.0f} s (seed {SEED}): "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(struck_at.items()))
        + f"; {missed} studies ended before; at most {max(again)} images computed again; no invariant broken"
    )


def strike(one: SoakedStudy, sweep: subprocess.Popen, kind: str, images: float, later_sec: float, draw) -> int | None:
    """Kill one process of this kind once ``images`` have been seen and some seconds have passed; how many had been seen.

    None where the study ended before. Where there is none of the kind at that moment, the next one that appears is killed.
    """
    if not reach(one, sweep, images, later_sec):
        return None
    deadline = time.monotonic() + 900
    while sweep.poll() is None:
        assert time.monotonic() < deadline, f"{one.name} has no {kind}\n{one.text}"
        found = [psutil.Process(sweep.pid)] if kind == "sweep" else one.processes(TITLES[kind])
        if found:
            seen = one.images()
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself just now
                one.kill(draw.choice(found))
                return seen
        time.sleep(0.1)
    return None
