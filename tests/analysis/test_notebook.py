"""What a notebook displays."""

import dataclasses

from tests.helpers.synthetic_study import whole_study


def test_study_and_trial_are_escaped_tables(tmp_path):
    results = dataclasses.replace(whole_study(tmp_path, 24), name="<b>'q'</b> 🐟")
    text = results._repr_html_()
    assert text.count("<tr>") == 1 + 10 + 1 and "11 of 24 trials" in text  # head, the best, the baseline
    assert "&lt;b&gt;" in text and "<b>" not in text and "<td>better</td>" in text
    for number in (results.best.number, 0):
        assert f"<td>{number}</td>" in text
    odd = dataclasses.replace(results.best, params={"loss.reference": "<i>"})._repr_html_()
    assert "&lt;i&gt;" in odd and f"Trial {results.best.number} (search)" in odd
    running = dataclasses.replace(results.best, outcome=None, state="RUNNING", value=None, scores={})
    assert "<td>running</td>" in running._repr_html_() and "<td>–</td>" in running._repr_html_()
