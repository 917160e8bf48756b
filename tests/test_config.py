"""The schema: what a user gets wrong is one ConfigError with the value, the rule, the place and the nearest choice."""

from __future__ import annotations

import pytest
import yaml

from uvar_tune.config import Config, content_hash, dotted_names
from uvar_tune.config_file import parse_yaml, read_config, validate
from uvar_tune.errors import ConfigError

LAMBDA = {"role": "scientific", "type": "float", "low": 0.01, "high": 6, "log": True, "baseline": 0}


@pytest.fixture
def written(tmp_path):
    def write(text) -> str:
        path = tmp_path / "space.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return str(path)
    return write


def refusal(read, *arguments) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("tree, said, nearest", [
    ({"studdy": {}}, "unknown key 'studdy'", "study"),
    ({"training": {"learning_rat": 1}}, "unknown key 'training.learning_rat'", "training.learning_rate"),
    ({"study": {"constraints": {"nll_token": {"maxx": 1}}}}, "constraints.nll_token.maxx", "study.constraints.nll_token.max"),
    ({"objective": {"lambda_2": 1.0}}, "objective.lambda_2 1.0: input should be less than 1", None),
    ({"objective": {"lambda_1": float("nan")}}, "objective.lambda_1", None),
    ({"objective": {"reference": "unifrom"}}, "objective.reference 'unifrom'", "uniform"),
    ({"study": {"sampler": "nsga3"}}, "study.sampler 'nsga3'", "nsga2"),
    ({"study": {"trials": 0}}, "study.trials 0", None),
    ({"study": {"name": "../elsewhere"}}, "study.name '../elsewhere'", None),
    ({"training": {"images": 100}}, "training.images 100 is not a multiple of training.batch_size 64; the nearest: 64 or "
     "128", None),
    ({"training": {"images": 640}}, "training.warmup_images 640 must be below", None),
    ({"run": {"workers": 3}}, "run.workers·training.accumulate 3", None),
    ({"run": {"log_images": 65}}, "run.log_images 65", None),
    ({"model": {"width": 100, "heads": 3}}, "model.width 100 is not a multiple of model.heads 3", None),
    ({"data": {"image_size": 32}}, "data.image_size 32 differs from 16", None),
    ({"data": {"name": "folder"}}, "needs data.path", None),
    ({"tokenizer": {"scales": [1, 3, 2]}}, "must grow strictly", None),
    ({"inference": {"profile_cfg_scales": [1, 2]}}, "must ascend and hold 0", None),
    ({"inference": {"profile_cfg_scales": [0]}}, "and one more", None),
    ({"objective": {"lambda_1": 1, "discrepancy": "kl", "dispersion": "probability", "reference": "uniform"}},
     "variance of 0", None),
    ({"objective": {"lambda_1": 0.5, "lambda_unit": "share"}}, "is a share of the gradient", None),
    ({"study": {"pruner": "median"}}, "study.pruner and study.rungs belong together", None),
    ({"study": {"rungs": [6400]}}, "study.pruner and study.rungs belong together", None),
    ({"study": {"pruner": "median", "rungs": [6401]}}, "study.rungs 6401 is not a multiple of training.batch_size 64; the "
     "nearest: 6400 or 6464", None),
    ({"study": {"pruner": "median", "rungs": [32000]}}, "must be below training.images 32000", None),
    ({"study": {"pruner": "median", "rungs": [12800, 6400]}}, "must grow strictly", None),
    ({"study": {"pruner": "median", "rungs": [6400], "rung_samples": 2000}}, "exceeds evaluation.samples 1000", None),
    ({"study": {"pruner": "successive_halving", "rungs": [6400, 16000]}}, "same whole multiple", None),
    ({"study": {"further_objectives": ["is"], "pruner": "median", "rungs": [6400]}}, "needs study.stop_metric", None),
    ({"study": {"stop_metric": "kid"}}, "study.stop_metric 'kid' is none of the objectives", None),
    ({"study": {"further_objectives": ["fid"]}}, "name an objective twice", None),
    ({"study": {"constraints": {"nll_token": {}}}}, "a constraint needs max, min", None),
    ({"study": {"max_gpu_hours": 5}}, "run.gpus_per_worker is 0", None),
    ({"study": {"max_wall_time": 0}}, "study.max_wall_time 0", None),
    ({"study": []}, "study", None),
    ({"space": [1]}, "space", None),
    ({1: {}}, "", None),
])
def test_what_breaks_a_rule_is_refused_with_the_rule(tree, said, nearest):
    error = refusal(validate, tree, "space.yaml")
    assert said in error.message and error.where == "space.yaml"
    assert error.nearest == nearest


@pytest.mark.parametrize("entry, said", [
    ({"low": 2, "high": 1}, "low 2 must be below high 1"),
    ({"low": 1, "high": 1}, "low 1 must be below high 1"),
    ({"low": 0, "high": 1}, "a log scale needs low > 0"),
    ({"low": None}, "takes low and high"),
    ({"choices": [1, 2]}, "not choices"),
    ({"type": "categorical"}, "needs choices"),
    ({"type": "categorical", "low": None, "high": None, "log": False, "choices": [0.1, 0.1]}, "each once"),
    ({"type": "int", "low": 0.5, "log": False}, "whole bounds"),
    ({"type": "complex"}, "space.objective.lambda_1.type"),
    ({"role": "scientist"}, "space.objective.lambda_1.role"),
    ({"role": "inference"}, "have role inference"),
    ({"role": "fixed"}, "exactly one choice"),
    ({"low": -1, "log": False}, "greater than or equal to 0"),
    ({"lo": 1}, "unknown key 'space.objective.lambda_1.lo'"),
    ({"baseline": 0.5}, "the baseline has λ = 0"),
    ({"when": {"objective.referenc": "normal"}}, "unknown parameter 'objective.referenc'"),
])
def test_an_entry_of_the_space_that_cannot_be_searched(entry, said):
    tree = {"space": {"objective.lambda_1": {**LAMBDA, **entry}}}
    assert said in refusal(validate, tree, "space.yaml").message


REFERENCE = {"role": "scientific", "type": "categorical", "choices": ["normal", "semantic", "uniform"]}
NEIGHBOURS = {"role": "nuisance", "type": "float", "low": 2, "high": 32}


@pytest.mark.parametrize("space, said", [
    ({"objective.lambda_3": LAMBDA}, "'objective.lambda_3' cannot be searched"),
    ({"study.trials": {"role": "nuisance", "type": "int", "low": 1, "high": 9}}, "'study.trials' cannot be searched"),
    ({"tokenizer.beta": {**NEIGHBOURS}}, "'tokenizer.beta' cannot be searched"),  # one tokenizer serves all trials
    ({"objective.neighbours": {**NEIGHBOURS, "when": {"objective.reference": "semantic"}},
      "objective.reference": REFERENCE}, "must be sampled, and stand before it"),
    ({"objective.reference": REFERENCE, "objective.neighbours": {**NEIGHBOURS, "when": {"objective.reference": "semantics"}}},
     "is never 'semantics'"),
    ({"objective.neighbours": {**NEIGHBOURS, "baseline": 64}}, "baseline 64 lies outside its range [2, 32]"),
    ({"objective.reference": {**REFERENCE, "baseline": "dataset"}}, "baseline 'dataset' lies outside its range"),
    ({"inference.cfg_scale": {"role": "fixed", "type": "categorical", "choices": [1.5]}}, "'profile' searches it"),
    ({"objective.reference": REFERENCE, "inference.top_k": {"role": "inference", "type": "categorical", "choices": [0, 32],
                                                            "when": {"objective.reference": "normal"}}}, "has no condition"),
    ({"inference.profile_axes": {"role": "inference", "type": "categorical", "choices": ["cfg_scale"]}}, "cannot be searched"),
    ({"inference.cfg_scale": {"role": "inference", "type": "float", "low": 1, "high": 4}}, "0 lies outside"),
    ({"objective.reference": REFERENCE, "objective.lambda_1": LAMBDA,
      "objective.dispersion": {"role": "fixed", "type": "categorical", "choices": ["probability"]},
      "objective.discrepancy": {"role": "scientific", "type": "categorical", "choices": ["wasserstein", "kl"]}},
     "the space allows"),
    ({"model.heads": {"role": "nuisance", "type": "int", "low": 3, "high": 4}}, "space.model.heads: 3"),
    ({"objective.reference": REFERENCE}, "objective.lambda_1 is 0 in every trial"),
    ({"objective.lambda_1": {"role": "scientific", "type": "categorical", "choices": [0, 0.5]}, "objective.reference": REFERENCE},
     "makes no difference where objective.lambda_1 is 0"),
])
def test_a_space_some_trial_of_which_would_fail(space, said):
    assert said in refusal(validate, {"space": space}, "space.yaml").message


def test_a_reference_is_searched_where_its_term_has_weight():
    arm = {"role": "scientific", "type": "categorical", "choices": [0, 0.5]}
    conditional = {**REFERENCE, "when": {"objective.lambda_1": [0.5]}}
    assert validate({"space": {"objective.lambda_1": arm, "objective.reference": conditional}}, "x")
    assert validate({"objective": {"lambda_1": 0.1}, "space": {"objective.reference": REFERENCE}}, "x")


def test_shares_are_searched_as_shares():
    share = {"objective": {"lambda_unit": "share"}}
    assert validate({**share, "space": {"objective.lambda_1": {**LAMBDA, "low": 1e-3, "high": 0.3}}}, "x")
    assert "share of the gradient" in refusal(validate, {**share, "space": {"objective.lambda_1": LAMBDA}}, "x").message
    flat = {**LAMBDA, "low": 1e-3, "high": 0.3, "log": False}
    assert "log scale" in refusal(validate, {**share, "space": {"objective.lambda_1": flat}}, "x").message


@pytest.mark.parametrize("text, said", [
    ("study: {name: a", "not YAML"),
    ("study: &a {name: x}\ndata: *a", "aliases"),
    ("study: {}\nstudy: {}", "line 2: key 'study' stands twice"),
    ("study:\n  seed: 1\n  seed: 2", "line 3: key 'seed' stands twice"),
    ("1: {}", "key 1 is not a word"),
    ("- 1", "a configuration is a mapping"),
    ("", "a configuration is a mapping"),
    ("study: !!python/object/apply:os.system ['true']", "not YAML"),
    ("study: {name: \x00}", "not YAML"),
    ("? {a: b}\n: 1", ""),
    ("[" * 3000, "not"),
])
def test_yaml_that_is_no_configuration(written, text, said):
    error = refusal(read_config, written(text))
    assert said in error.message and error.where.endswith("space.yaml")


def test_files_that_cannot_be_read(tmp_path, written):
    path = written({"study": {"seed": 1}})
    missing = refusal(read_config, path.replace("space", "spaec"))
    assert "no such file" in missing.message and missing.nearest == "space.yaml"
    assert "cannot be read" in refusal(read_config, str(tmp_path)).message
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(read_config, str(binary)).message
    (tmp_path / "huge.yaml").write_text("#" * (2**20 + 1))
    assert "larger than" in refusal(read_config, str(tmp_path / "huge.yaml")).message


@pytest.mark.parametrize("override, said, nearest", [
    ("study.seeed=1", "unknown setting 'study.seeed'", "study.seed"),
    ("seed=1", "not of the form", None),
    ("study.seed", "not of the form", None),
    ("study.seed=[1", "not YAML", None),
    ("study.seed=x", "study.seed 'x'", None),
    ("study.seed=-1", "study.seed -1", None),
])
def test_overrides_that_are_refused(written, override, said, nearest):
    error = refusal(read_config, written({"study": {"seed": 1}}), [override])
    assert said in error.message and error.nearest == nearest


def test_overrides_and_names_replace_what_stands_in_the_file(written):
    path = written("study: {seed: 1, name: a}\ntraining:\n")
    config = read_config(path, ["study.seed=5", "objective.lambda_1=1e-3", "inference.profile_cfg_scales=[0, 3]"], name="b")
    assert (config.study.seed, config.study.name, config.objective.lambda_1) == (5, "b", 1e-3)
    assert config.inference.profile_cfg_scales == (0.0, 3.0)
    assert "'study' is not a mapping" in refusal(lambda: read_config(written("study: 3"), name="b")).message
    assert "'study' is not a mapping" in refusal(read_config, written("study: [3]"), ["study.seed=1"]).message


def test_a_written_configuration_reads_back_as_itself():
    config = validate({"study": {"constraints": {"nll_token": {"max_above_baseline": 0.05}}, "further_objectives": ["is"]},
                       "space": {"objective.lambda_1": LAMBDA}}, "x")
    again = validate(parse_yaml(yaml.safe_dump(config.tree()), "y"), "y")
    assert again == config and content_hash(again.tree()) == content_hash(config.tree())
    assert content_hash(again.with_values({"study.seed": 1}).tree()) != content_hash(config.tree())


def test_every_dotted_name_can_be_read_and_replaced():
    config = Config()
    assert len(dotted_names()) == len(set(dotted_names())) > 60
    for name in dotted_names():
        assert config.with_values({name: config.get(name)}) == config, name
