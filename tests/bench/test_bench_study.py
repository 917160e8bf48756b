"""The bench of the study: all parties are on the account, and their sum is what the process spent."""

from __future__ import annotations

import time

from uvar_tune.bench.study import PARTIES, WINDOW, run


def test_the_small_bench_accounts_for_its_time():
    began = time.process_time()
    rows = run(small=True)
    spent_ms = 1e3 * (time.process_time() - began)
    assert [(row["sampler"], row["trials"]) for row in rows] == [
        (sampler, trials) for sampler in ("tpe", "random") for trials in ("1-50", "51-100", "101-150")
    ]
    for row in rows:
        assert all(row[f"{party}_ms"] >= 0 for party in PARTIES) and row["own_ms"] > 0 and row["storage_ms"] > 0
    assert all(row["own_to_first"] == 1.0 for row in rows if row["trials"] == "1-50")
    assert all(
        row["own_kib_a_trial"] < 0.05 < 1 < row["attributes_kib_a_trial"] for row in rows
    )  # growth is that of the attributes
    assert sum(row[f"{party}_ms"] * WINDOW for row in rows for party in PARTIES) < spent_ms
    tpe, drawn = (next(row for row in rows if row["sampler"] == sampler) for sampler in ("tpe", "random"))
    assert tpe["sampler_ms"] > drawn["sampler_ms"]
