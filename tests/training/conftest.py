"""Ranks in processes of their own, forked from a server that has imported torch once."""

from __future__ import annotations

import itertools
import multiprocessing

import pytest

from tests.helpers.trainee import run_rank

_meetings = itertools.count()


@pytest.fixture(scope="session")
def ranks():
    """Runs `run_rank`, or another ``target``, on so many ranks in one directory; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "uvar_tune.training", "uvar_tune.objective"])

    def run(directory, world_size: int, target=run_rank, **options) -> list[int]:
        directory.mkdir(exist_ok=True)
        if world_size > 1:
            options["meeting"] = next(_meetings)
        processes = [
            context.Process(target=target, args=(directory, rank, world_size), kwargs=options)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=300)
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in processes]

    return run


@pytest.fixture(scope="session")
def uninterrupted(ranks, tmp_path_factory):
    """Directories of whole trainings, by world size."""
    made = {}
    for world_size in (1, 2):
        made[world_size] = tmp_path_factory.mktemp(f"ranks-{world_size}")
        assert ranks(made[world_size], world_size) == [0] * world_size
    return made
