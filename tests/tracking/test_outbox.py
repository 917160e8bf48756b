import json

import pytest

from uvar_tune.tracking.outbox import DeliveryState, Outbox, TrialProgress, run_ids


def operations(outbox, offset=0):
    return [operation["op"] for operation, _ in outbox.read(offset)]


def test_operations_come_back_in_order_from_any_offset(tmp_path):
    outbox = Outbox(tmp_path / "mlflow")
    for name in ("one", "two", "three"):
        assert outbox.append({"op": name}) is None
    found = outbox.read(0)
    assert [operation["op"] for operation, _ in found] == ["one", "two", "three"]
    for i, (_, end) in enumerate(found):
        assert operations(outbox, end) == ["one", "two", "three"][i + 1 :]


def test_a_line_torn_by_a_kill_spoils_neither_the_next_nor_the_reading(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.append({"op": "one"})
    with (tmp_path / "outbox.jsonl").open("ab") as handle:
        handle.write(b'{"op": "to')
    assert operations(outbox) == ["one"]
    Outbox(tmp_path).append({"op": "three"})
    assert operations(outbox) == ["one", "three"]
    assert outbox.pending() == (2, 0, 0)


@pytest.mark.parametrize("line", [bytes(20), b"\x00\x00\x00\x00{}", b"\xff\xfe", b"[" * 100_000, b"[1]", b"7"])
def test_a_line_that_is_none_of_ours_is_passed_over(tmp_path, line):
    """Such as the NULs that a machine leaves where it lost its power."""
    outbox = Outbox(tmp_path)
    outbox.append({"op": "one"})
    with (tmp_path / "outbox.jsonl").open("ab") as handle:
        handle.write(line)
    outbox.append({"op": "two"})
    assert operations(outbox) == ["one", "two"] and outbox.pending() == (2, 0, 0)


def test_what_is_rewritten_is_to_be_sent_and_keeps_the_mark_of_its_runs(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.append({"op": "one"})
    outbox.save_state(DeliveryState(fingerprint="mark", offset=14, runs={"0": "a"}))
    outbox.replace_all([{"op": "zero"}, *outbox.operations()])
    assert operations(outbox) == ["zero", "one"] and outbox.pending() == (2, 0, 0)
    assert outbox.load_state() == DeliveryState(fingerprint="mark")


def test_what_the_disk_refuses_waits_in_order(tmp_path):
    (tmp_path / "mlflow").write_text("a file where the directory should be")
    outbox = Outbox(tmp_path / "mlflow")
    assert outbox.append({"op": "one"}) and outbox.append({"op": "two"})
    assert outbox.pending() == (2, 0, 0)
    (tmp_path / "mlflow").unlink()
    assert outbox.append({"op": "three"}) is None
    assert operations(outbox) == ["one", "two", "three"]


def test_one_holder_at_a_time(tmp_path):
    first, second = Outbox(tmp_path), Outbox(tmp_path)
    assert first.acquire_lock() and first.acquire_lock()
    assert not second.acquire_lock()
    first.release_lock()
    assert second.acquire_lock()


def test_a_torn_or_missing_state_is_the_empty_one(tmp_path):
    outbox = Outbox(tmp_path)
    assert outbox.load_state() == DeliveryState() and run_ids(tmp_path) == {}
    (tmp_path / "state.json").write_text('{"offset": 7')
    assert outbox.load_state() == DeliveryState()


def test_known_runs_are_those_of_trials(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.save_state(DeliveryState(runs={"study": "p", "0": "a", "12": "b", "confirm/3": "c"}))
    assert run_ids(tmp_path) == {0: "a", 12: "b"}


def test_paths_within_the_study_move_with_it(tmp_path):
    outbox = Outbox(tmp_path / "s" / "mlflow")
    inside, outside = tmp_path / "s" / "trials" / "00007", tmp_path / "elsewhere" / "report.html"
    stored = outbox.relative(inside)
    assert outbox.absolute(stored) == inside and outbox.absolute(outbox.relative(outside)) == outside
    assert Outbox(tmp_path / "moved" / "mlflow").absolute(stored) == tmp_path / "moved" / "trials" / "00007"


def test_unsent_counts_complete_lines_of_trials_that_are_not_done(tmp_path):
    outbox = Outbox(tmp_path / "mlflow")
    record = tmp_path / "trials" / "metrics.jsonl"
    record.parent.mkdir()
    record.write_bytes(b'{"half": ')
    outbox.acquire_lock()
    outbox.save_state(DeliveryState(trials={"0": TrialProgress("trials")}))
    assert outbox.pending() == (0, 0, 0)
    record.write_bytes(json.dumps({"kind": "log"}).encode() + b"\n")
    assert outbox.pending() == (0, 1, 0)
    outbox.save_state(DeliveryState(trials={"0": TrialProgress("trials", offset=record.stat().st_size)}))
    assert outbox.pending() == (0, 0, 0)
