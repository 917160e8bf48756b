"""Two ranks go on from one checkpoint, although a worker of an earlier attempt adds another until rank 0 has the place alone."""

from __future__ import annotations

import multiprocessing

import torch
import torch.distributed

from tests.helpers.commands import free_port
from uvar_tune.trial.resume import broadcast_choice


def _rank(rank: int, port: int, folder, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def newest():
        (folder / "000000000128").mkdir()  # what the earlier worker still wrote while rank 0 waited
        return max(folder.iterdir())

    queue.put((rank, str(broadcast_choice(newest, "recorder" if rank == 0 else None, torch.device("cpu")))))
    torch.distributed.destroy_process_group()


def test_rank_0_chooses_for_all(tmp_path):
    (tmp_path / "000000000064").mkdir()
    context, port = multiprocessing.get_context("spawn"), free_port()
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, tmp_path, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert found == {rank: str(tmp_path / "000000000128") for rank in range(2)}


def test_alone_it_is_as_chosen():
    assert broadcast_choice(lambda: None, "recorder", torch.device("cpu")) is None
