"""What the end of a study logs: ranks, comparisons, the description; with more trials than MLflow's table shows."""

from tests.helpers.synthetic_study import study, whole_study
from uvar_tune.commands.summary import log_summary
from uvar_tune.tracking import BufferedRunLogger, Outbox
from uvar_tune.tracking.presentation import DESCRIPTION


def logged(tmp_path, results) -> tuple[dict[int, dict], str]:
    """(tags by trial, description of the study) that the summary logs."""
    run_logger = BufferedRunLogger(Outbox(tmp_path / "mlflow"))
    log_summary(results, run_logger, [])
    tags = {one["number"]: one["tags"] for one in run_logger.operations if one["op"] == "set_tags"}
    return tags, tags.pop(None)[DESCRIPTION]


def test_trials_are_compared_with_the_baseline(tmp_path):
    results = whole_study(tmp_path, 20)
    tags, description = logged(tmp_path, results)
    ranked = results.ranked()
    assert [tags[trial.number]["uvar.rank"] for trial in ranked] == [str(rank) for rank in range(1, len(ranked) + 1)]
    assert "uvar.verdict" not in tags[0]  # the baseline
    best = tags[ranked[0].number]
    assert best["uvar.verdict"] == results.verdict(ranked[0])["verdict"] and "pairs of seeds" in best["uvar.difference"]
    others = [tags[trial.number] for trial in ranked[2:] if trial.number]
    assert {one["uvar.verdict"] for one in others} == {"unconfirmed"}
    assert all(
        "one seed, within noise" in one["uvar.difference"] or "beyond" in one["uvar.difference"] for one in others
    )
    assert "at a time" not in description


def test_what_the_page_of_a_large_study_leaves_out_is_said(tmp_path):
    results = study(tmp_path, 1200)
    tags, description = logged(tmp_path, results)
    assert len(results.ranked()) > 1000 == len(tags)
    assert "MLflow shows 100 trials at a time, the best first" in description and "1,000 have a rank" in description
