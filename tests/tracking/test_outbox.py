import json

import pytest

from uvar_tune.tracking.outbox import Outbox, known_runs


def operations(spool, offset=0):
    return [operation["op"] for operation, _ in spool.after(offset)]


def test_operations_come_back_in_order_from_any_offset(tmp_path):
    spool = Outbox(tmp_path / "mlflow")
    for name in ("one", "two", "three"):
        assert spool.put({"op": name}) is None
    found = spool.after(0)
    assert [operation["op"] for operation, _ in found] == ["one", "two", "three"]
    for i, (_, end) in enumerate(found):
        assert operations(spool, end) == ["one", "two", "three"][i + 1 :]


def test_a_line_torn_by_a_kill_spoils_neither_the_next_nor_the_reading(tmp_path):
    spool = Outbox(tmp_path)
    spool.put({"op": "one"})
    with (tmp_path / "outbox.jsonl").open("ab") as handle:
        handle.write(b'{"op": "to')
    assert operations(spool) == ["one"]
    Outbox(tmp_path).put({"op": "three"})
    assert operations(spool) == ["one", "three"]
    assert spool.unsent() == (2, 0)


@pytest.mark.parametrize("line", [bytes(20), b"\x00\x00\x00\x00{}", b"\xff\xfe", b"[" * 100_000, b"[1]", b"7"])
def test_a_line_that_is_none_of_ours_is_passed_over(tmp_path, line):
    """Such as the NULs that a machine leaves where it lost its power."""
    spool = Outbox(tmp_path)
    spool.put({"op": "one"})
    with (tmp_path / "outbox.jsonl").open("ab") as handle:
        handle.write(line)
    spool.put({"op": "two"})
    assert operations(spool) == ["one", "two"] and spool.unsent() == (2, 0)


def test_what_is_rewritten_is_to_be_sent_and_keeps_the_mark_of_its_runs(tmp_path):
    spool = Outbox(tmp_path)
    spool.put({"op": "one"})
    spool.save({**spool.load(), "root": "mark", "outbox": 14, "runs": {"0": "a"}})
    spool.rewrite([{"op": "zero"}, *spool.operations()])
    assert operations(spool) == ["zero", "one"] and spool.unsent() == (2, 0)
    assert spool.load()["root"] == "mark" and spool.load()["runs"] == {}


def test_what_the_disk_refuses_waits_in_order(tmp_path):
    (tmp_path / "mlflow").write_text("a file where the directory should be")
    spool = Outbox(tmp_path / "mlflow")
    assert spool.put({"op": "one"}) and spool.put({"op": "two"})
    assert spool.unsent() == (2, 0)
    (tmp_path / "mlflow").unlink()
    assert spool.put({"op": "three"}) is None
    assert operations(spool) == ["one", "two", "three"]


def test_one_holder_at_a_time(tmp_path):
    first, second = Outbox(tmp_path), Outbox(tmp_path)
    assert first.hold() and first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()


def test_a_torn_or_missing_state_is_the_empty_one(tmp_path):
    spool = Outbox(tmp_path)
    assert spool.load()["outbox"] == 0 and known_runs(tmp_path) == {}
    (tmp_path / "state.json").write_text('{"outbox": 7')
    assert spool.load()["outbox"] == 0


def test_known_runs_are_those_of_trials(tmp_path):
    spool = Outbox(tmp_path)
    spool.save({"runs": {"study": "p", "0": "a", "12": "b", "confirm/3": "c"}})
    assert known_runs(tmp_path) == {0: "a", 12: "b"}
    assert spool.load()["uncertain"] == []


def test_paths_within_the_study_move_with_it(tmp_path):
    spool = Outbox(tmp_path / "s" / "mlflow")
    inside, outside = tmp_path / "s" / "trials" / "00007", tmp_path / "elsewhere" / "report.html"
    stored = spool.relative(inside)
    assert spool.absolute(stored) == inside and spool.absolute(spool.relative(outside)) == outside
    assert Outbox(tmp_path / "moved" / "mlflow").absolute(stored) == tmp_path / "moved" / "trials" / "00007"


def test_unsent_counts_complete_lines_of_trials_that_are_not_done(tmp_path):
    spool = Outbox(tmp_path / "mlflow")
    record = tmp_path / "trials" / "metrics.jsonl"
    record.parent.mkdir()
    record.write_bytes(b'{"half": ')
    spool.hold()
    entry = {"directory": "trials", "offset": 0, "done": False}
    spool.save({"trials": {"0": entry}})
    assert spool.unsent() == (0, 0)
    record.write_bytes(json.dumps({"kind": "log"}).encode() + b"\n")
    assert spool.unsent() == (0, 1)
    spool.save({"trials": {"0": {**entry, "offset": record.stat().st_size}}})
    assert spool.unsent() == (0, 0)
