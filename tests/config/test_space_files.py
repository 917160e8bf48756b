"""The space files that ship: each loads, says what it is for, and every point of it makes a trial."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.helpers.search_cases import details, scored
from uvar_tune.config.loading import read_config
from uvar_tune.config.schema import REFERENCES, ModelConfig
from uvar_tune.config.space import searched_entries
from uvar_tune.model import VAR
from uvar_tune.search.objectives import check_objective, named_scores
from uvar_tune.search.study import Search

FILES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


def proposals_of(config, journal, trials):
    """Proposals of ``trials`` trials, each with some score."""
    search = Search(config.with_values({"study.trials": trials}), journal)
    proposals = []
    while (proposal := search.ask()) is not None:
        proposals.append(proposal)
        scores = dict.fromkeys(named_scores(config), 1.0 + proposal.number)
        search.complete(proposal.number, scored(1.0 + proposal.number, details(**scores)))
    return proposals


def test_shipped_files_are_these():
    assert {path.stem for path in FILES} == {
        "digits",
        "digits_confirm",
        "search_table",
        "afhq",
        "imagenet100",
        "ablation_2x2",
        "references",
        "scaling_d16_d20",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_space_file_loads_and_has_a_header(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("# Question: ", "# Cost: ", "# Hardware: ", "# Expect: "):
        assert sum(line.startswith(word) for line in header) == 1, word
    config = read_config(path)
    check_objective(config)
    assert config.study.name == path.stem and config.study.question
    assert config.space and searched_entries(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_proposal_is_a_valid_trial(path, journal):
    config = read_config(path)
    proposals = proposals_of(config, journal, 24)
    assert [proposals[0].values[name] for name in ("loss.lambda_1", "loss.lambda_2")] == [0.0, 0.0]
    for proposal in proposals:
        trial = config.with_values(proposal.values)
        model, tokenizer = trial.model, trial.tokenizer
        with torch.device("meta"):
            var = VAR(
                ModelConfig(depth=model.depth, width=model.width or 64 * model.depth, heads=model.heads or model.depth),
                scales=tokenizer.scales,
                vocab_size=tokenizer.vocab_size,
                code_dim=tokenizer.code_dim,
                num_classes=10,
            )
        assert {parameter.device.type for parameter in var.parameters()} == {"meta"}


def test_ablation_visits_every_arm_twice(journal):
    config = read_config(FILES[0].with_name("ablation_2x2.yaml"))
    arms = Counter(
        (p.values["loss.lambda_1"], p.values["loss.lambda_2"])
        for p in proposals_of(config, journal, config.study.trials)[1:]
    )
    assert arms == {(a, b): 2 for a in (0.0, 0.1) for b in (0.0, 0.1)}


def test_scaling_visits_every_combination_once(journal):
    config = read_config(FILES[0].with_name("scaling_d16_d20.yaml"))
    met = [
        tuple(p.values[name] for name in ("loss.lambda_1", "loss.lambda_2", "model.depth"))
        for p in proposals_of(config, journal, config.study.trials)[1:]
    ]
    assert sorted(met) == [(a, b, depth) for a in (0.0, 0.1) for b in (0.0, 0.1) for depth in (16, 20)]


def test_references_visit_every_pair_once_at_one_seed(journal):
    config = read_config(FILES[0].with_name("references.yaml"))
    proposals = proposals_of(config, journal, config.study.trials)
    met = [(p.values["loss.reference"], p.values["loss.discrepancy"]) for p in proposals[1:]]
    assert sorted(met) == sorted(itertools.product(REFERENCES, ("wasserstein", "squared", "kl")))
    assert {(p.values["loss.lambda_1"], p.values["loss.lambda_2"]) for p in proposals[1:]} == {(0.05, 0.0)}
    assert config.loss.lambda_unit == "share" and len({p.seeds["training"] for p in proposals}) == 1
