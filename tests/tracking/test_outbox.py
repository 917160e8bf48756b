import json

import pytest

from uvar_tune.tracking.outbox import DeliveryState, Outbox, TrialProgress, run_ids


def operations(outbox, offset=0):
    return [operation["op"] for operation, _ in outbox.read(offset)]


def test_operations_are_read_from_any_offset(tmp_path):
    outbox = Outbox(tmp_path / "mlflow")
    for name in ("one", "two", "three"):
        assert outbox.append({"op": name}) is None
    found = outbox.read(0)
    assert [operation["op"] for operation, _ in found] == ["one", "two", "three"]
    for i, (_, end) in enumerate(found):
        assert operations(outbox, end) == ["one", "two", "three"][i + 1 :]


def test_torn_line_is_skipped(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.append({"op": "one"})
    with (tmp_path / "outbox.jsonl").open("ab") as handle:
        handle.write(b'{"op": "to')
    assert operations(outbox) == ["one"]
    Outbox(tmp_path).append({"op": "three"})
    assert operations(outbox) == ["one", "three"]
    assert outbox.pending() == (2, 0, 0)


@pytest.mark.parametrize("line", [bytes(20), b"\x00\x00\x00\x00{}", b"\xff\xfe", b"[" * 100_000, b"[1]", b"7"])
def test_invalid_line_is_skipped(tmp_path, line):
    """Such as the NULs that a machine leaves where it lost its power."""
    outbox = Outbox(tmp_path)
    outbox.append({"op": "one"})
    with (tmp_path / "outbox.jsonl").open("ab") as handle:
        handle.write(line)
    outbox.append({"op": "two"})
    assert operations(outbox) == ["one", "two"] and outbox.pending() == (2, 0, 0)


def test_replace_all_keeps_the_fingerprint(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.append({"op": "one"})
    outbox.save_state(DeliveryState(fingerprint="mark", offset=14, runs={"0": "a"}))
    outbox.replace_all([{"op": "zero"}, *outbox.operations()])
    assert operations(outbox) == ["zero", "one"] and outbox.pending() == (2, 0, 0)
    assert outbox.load_state() == DeliveryState(fingerprint="mark")


def test_refused_operations_are_buffered_in_order(tmp_path):
    (tmp_path / "mlflow").write_text("a file where the directory should be")
    outbox = Outbox(tmp_path / "mlflow")
    assert outbox.append({"op": "one"}) and outbox.append({"op": "two"})
    assert outbox.pending() == (2, 0, 0)
    (tmp_path / "mlflow").unlink()
    assert outbox.append({"op": "three"}) is None
    assert operations(outbox) == ["one", "two", "three"]


def test_lock_has_one_holder(tmp_path):
    first, second = Outbox(tmp_path), Outbox(tmp_path)
    assert first.acquire_lock() and first.acquire_lock()
    assert not second.acquire_lock()
    first.release_lock()
    assert second.acquire_lock()


def test_damaged_state_is_empty(tmp_path):
    outbox = Outbox(tmp_path)
    assert outbox.load_state() == DeliveryState() and run_ids(tmp_path) == {}
    (tmp_path / "state.json").write_text('{"offset": 7')
    assert outbox.load_state() == DeliveryState()


def test_run_ids_are_those_of_trials(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.save_state(DeliveryState(runs={"study": "p", "0": "a", "12": "b", "confirm/3": "c"}))
    assert run_ids(tmp_path) == {0: "a", 12: "b"}


def test_stored_paths_move_with_the_study(tmp_path):
    outbox = Outbox(tmp_path / "s" / "mlflow")
    inside, outside = tmp_path / "s" / "trials" / "00007", tmp_path / "elsewhere" / "report.html"
    stored = outbox.relative(inside)
    assert outbox.absolute(stored) == inside and outbox.absolute(outbox.relative(outside)) == outside
    assert Outbox(tmp_path / "moved" / "mlflow").absolute(stored) == tmp_path / "moved" / "trials" / "00007"


def test_pending_counts_trials_with_complete_lines(tmp_path):
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
