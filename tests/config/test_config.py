"""The schema: what a user gets wrong is one ConfigError with the value, the rule, the place and the nearest choice."""

from __future__ import annotations

import pytest
import yaml

from uvar_tune.config.loading import parse_yaml, read_config, validate
from uvar_tune.config.schema import Config, dotted_names
from uvar_tune.errors import ConfigError
from uvar_tune.io.hashing import content_hash
from uvar_tune.io.safe_load import dump_yaml

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


@pytest.mark.parametrize(
    "tree, message, nearest",
    [
        ({"studdy": {}}, "unknown key 'studdy'", "study"),
        ({"training": {"learning_rat": 1}}, "unknown key 'training.learning_rat'", "training.learning_rate"),
        (
            {"study": {"constraints": {"nll_token": {"maxx": 1}}}},
            "constraints.nll_token.maxx",
            "study.constraints.nll_token.max",
        ),
        ({"loss": {"lambda_2": 1.0}}, "loss.lambda_2 1.0: input should be less than 1", None),
        ({"loss": {"lambda_1": float("nan")}}, "loss.lambda_1", None),
        ({"loss": {"reference": "unifrom"}}, "loss.reference 'unifrom'", "uniform"),
        ({"study": {"sampler": "nsga3"}}, "study.sampler 'nsga3'", "nsga2"),
        ({"study": {"trials": 0}}, "study.trials 0", None),
        ({"study": {"name": "../elsewhere"}}, "study.name '../elsewhere'", None),
        (
            {"training": {"images": 100}},
            "training.images 100 is not a multiple of training.batch_size 64; the nearest: 64 or 128",
            None,
        ),
        ({"training": {"images": 640}}, "training.warmup_images 640 must be below", None),
        ({"run": {"workers": 3}}, "run.workers·training.accumulate 3", None),
        ({"run": {"log_images": 65}}, "run.log_images 65", None),
        ({"model": {"width": 100, "heads": 3}}, "model.width 100 is not a multiple of model.heads 3", None),
        ({"data": {"image_size": 32}}, "data.image_size 32 differs from 16", None),
        ({"data": {"name": "folder"}}, "needs data.path", None),
        ({"tokenizer": {"scales": [1, 3, 2]}}, "must grow strictly", None),
        ({"inference": {"search_cfg_scales": [1, 2]}}, "must ascend and hold 0", None),
        ({"inference": {"search_cfg_scales": [0]}}, "and one more", None),
        ({"model": {"label_dropout": 0}}, "and inference.search 'per_checkpoint' scores CFG scales", None),
        ({"model": {"label_dropout": 0}, "inference": {"search": "joint"}}, "inference.cfg_scale 1.5 is above 0", None),
        (
            {"model": {"label_dropout": 0}, "inference": {"search": "joint", "cfg_scale": 0}},
            "study.confirm_axes holds cfg_scale",
            None,
        ),
        (
            {"loss": {"lambda_1": 1, "discrepancy": "kl", "dispersion": "probability", "reference": "uniform"}},
            "variance of 0",
            None,
        ),
        ({"loss": {"lambda_1": 0.5, "lambda_unit": "share"}}, "is a share of the gradient", None),
        ({"study": {"pruner": "median"}}, "study.pruner and study.rungs belong together", None),
        ({"study": {"rungs": [6400]}}, "study.pruner and study.rungs belong together", None),
        (
            {"study": {"pruner": "median", "rungs": [6401]}},
            "study.rungs 6401 is not a multiple of training.batch_size 64; the nearest: 6400 or 6464",
            None,
        ),
        ({"study": {"pruner": "median", "rungs": [32000]}}, "must be below training.images 32000", None),
        ({"study": {"pruner": "median", "rungs": [12800, 6400]}}, "must grow strictly", None),
        (
            {"study": {"pruner": "median", "rungs": [6400], "rung_samples": 2000}},
            "exceeds evaluation.samples 1000",
            None,
        ),
        ({"study": {"pruner": "successive_halving", "rungs": [6400, 16000]}}, "same whole multiple", None),
        ({"study": {"further_metrics": ["is"], "pruner": "median", "rungs": [6400]}}, "needs study.rung_metric", None),
        ({"study": {"rung_metric": "kid"}}, "study.rung_metric 'kid' is none of the metrics", None),
        ({"study": {"further_metrics": ["fid"]}}, "name a metric twice", None),
        ({"study": {"constraints": {"nll_token": {}}}}, "a constraint needs max, min", None),
        ({"study": {"max_gpu_hours": 5}}, "run.gpus_per_worker is 0", None),
        ({"study": {"max_wall_time": 0}}, "study.max_wall_time 0", None),
        ({"study": []}, "study", None),
        ({"space": [1]}, "space", None),
        ({1: {}}, "", None),
        (None, "a configuration is a mapping", None),
        (["study"], "a configuration is a mapping", None),
        ({"model": {"depth": 10**6}}, "model.depth 1000000: input should be less than or equal to 256", None),
        ({"model": {"width": 10**9}}, "model.width 1000000000: input should be less than or equal to 65536", None),
        ({"model": {"heads": 10**9}}, "model.heads 1000000000", None),
        ({"model": {"depth": None}}, "model.depth (nothing): input should be a valid integer", None),
        ({"tokenizer": {"channels": 10**9}}, "tokenizer.channels 1000000000", None),
        ({"tokenizer": {"scales": [1, 10**9]}}, "tokenizer.scales.1 1000000000", None),
        ({"data": {"image_size": 10**9}}, "data.image_size 1000000000", None),
        ({"study": {"trials": 10**20}}, "study.trials 100000000000000000000", None),
        ({"study": {"seed": 16**5000}}, "study.seed (a number of thousands of digits)", None),
        ({"training": {"images": 64 * 10**18}}, "training.images 64000000000000000000", None),
        ({"inference": {"cfg_scale": 1e9}}, "less than or equal to 100", None),
        ({"inference": {"temperature": 1e9}}, "less than or equal to 100", None),
        (
            {"inference": {"search_cfg_scales": "0,1"}},
            "inference.search_cfg_scales '0,1': a list is expected, such as [0,1]",
            None,
        ),
        ({"study": {"name": 1000.0}}, "study.name 1000.0: a text is expected; put it into quotes", None),
    ],
)
def test_invalid_value_names_its_rule(tree, message, nearest):
    error = refusal(validate, tree, "space.yaml")
    assert message in error.message and error.where == "space.yaml"
    assert error.nearest == nearest


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"low": 2, "high": 1}, "low 2 must be below high 1"),
        ({"low": 1, "high": 1}, "low 1 must be below high 1"),
        ({"low": 0, "high": 1}, "a log scale needs low > 0"),
        ({"low": None}, "takes low and high, and low is missing"),
        ({"high": None}, "takes low and high, and high is missing"),
        ({"low": "1e-3x"}, "space.loss.lambda_1.low '1e-3x'"),
        ({"choices": [1, 2]}, "not choices"),
        ({"type": "categorical"}, "needs choices"),
        ({"type": "categorical", "low": None, "high": None, "log": False, "choices": [0.1, 0.1]}, "each once"),
        ({"type": "int", "low": 0.5, "log": False}, "whole bounds"),
        ({"type": "complex"}, "space.loss.lambda_1.type"),
        ({"role": "scientist"}, "space.loss.lambda_1.role"),
        ({"role": "inference"}, "have role inference"),
        ({"role": "fixed"}, "exactly one choice"),
        ({"low": -1, "log": False}, "greater than or equal to 0"),
        ({"lo": 1}, "unknown key 'space.loss.lambda_1.lo'"),
        ({"baseline": 0.5}, "the baseline has λ = 0"),
        ({"when": {"loss.referenc": "normal"}}, "unknown parameter 'loss.referenc'"),
    ],
)
def test_invalid_space_entry_is_refused(entry, message):
    tree = {"space": {"loss.lambda_1": {**LAMBDA, **entry}}}
    assert message in refusal(validate, tree, "space.yaml").message


REFERENCE = {"role": "scientific", "type": "categorical", "choices": ["normal", "semantic", "uniform"]}
NEIGHBOURS = {"role": "nuisance", "type": "float", "low": 2, "high": 32}


@pytest.mark.parametrize(
    "space, message",
    [
        ({"loss.lambda_3": LAMBDA}, "'loss.lambda_3' cannot be searched"),
        (
            {"study.trials": {"role": "nuisance", "type": "int", "low": 1, "high": 9}},
            "'study.trials' cannot be searched",
        ),
        ({"tokenizer.beta": {**NEIGHBOURS}}, "'tokenizer.beta' cannot be searched"),  # one tokenizer serves all trials
        (
            {"loss.neighbours": {**NEIGHBOURS, "when": {"loss.reference": "semantic"}}, "loss.reference": REFERENCE},
            "must be sampled before it",
        ),
        (
            {"loss.reference": REFERENCE, "loss.neighbours": {**NEIGHBOURS, "when": {"loss.reference": "semantics"}}},
            "is never 'semantics'",
        ),
        ({"loss.neighbours": {**NEIGHBOURS, "baseline": 64}}, "baseline 64 is outside its range [2, 32]"),
        ({"loss.reference": {**REFERENCE, "baseline": "dataset"}}, "baseline 'dataset' is outside its range"),
        (
            {"inference.cfg_scale": {"role": "fixed", "type": "categorical", "choices": [1.5]}},
            "'per_checkpoint' searches it",
        ),
        (
            {
                "loss.reference": REFERENCE,
                "inference.top_k": {
                    "role": "inference",
                    "type": "categorical",
                    "choices": [0, 32],
                    "when": {"loss.reference": "normal"},
                },
            },
            "has no condition",
        ),
        (
            {"inference.search_axes": {"role": "inference", "type": "categorical", "choices": ["cfg_scale"]}},
            "cannot be searched",
        ),
        ({"inference.cfg_scale": {"role": "inference", "type": "float", "low": 1, "high": 4}}, "0 is outside"),
        (
            {
                "loss.reference": REFERENCE,
                "loss.lambda_1": LAMBDA,
                "loss.dispersion": {"role": "fixed", "type": "categorical", "choices": ["probability"]},
                "loss.discrepancy": {"role": "scientific", "type": "categorical", "choices": ["wasserstein", "kl"]},
            },
            "the space allows",
        ),
        ({"model.heads": {"role": "nuisance", "type": "int", "low": 3, "high": 4}}, "space.model.heads: 3"),
        ({"loss.reference": REFERENCE}, "loss.lambda_1 is 0 in every trial"),
        (
            {
                "loss.lambda_1": {"role": "scientific", "type": "categorical", "choices": [0, 0.5]},
                "loss.reference": REFERENCE,
            },
            "has no effect if loss.lambda_1 is 0",
        ),
    ],
)
def test_space_with_an_invalid_point_is_refused(space, message):
    assert message in refusal(validate, {"space": space}, "space.yaml").message


def test_reference_is_searched_only_with_a_weight():
    arm = {"role": "scientific", "type": "categorical", "choices": [0, 0.5]}
    conditional = {**REFERENCE, "when": {"loss.lambda_1": [0.5]}}
    assert validate({"space": {"loss.lambda_1": arm, "loss.reference": conditional}}, "x")
    assert validate({"loss": {"lambda_1": 0.1}, "space": {"loss.reference": REFERENCE}}, "x")


def test_shares_need_a_log_scale():
    share = {"loss": {"lambda_unit": "share"}}
    assert validate({**share, "space": {"loss.lambda_1": {**LAMBDA, "low": 1e-3, "high": 0.3}}}, "x")
    assert "share of the gradient" in refusal(validate, {**share, "space": {"loss.lambda_1": LAMBDA}}, "x").message
    flat = {**LAMBDA, "low": 1e-3, "high": 0.3, "log": False}
    assert "log scale" in refusal(validate, {**share, "space": {"loss.lambda_1": flat}}, "x").message


@pytest.mark.parametrize(
    "text, message",
    [
        ("study: {name: a", "not YAML"),
        ("study: &a {name: x}\ndata: *a", "aliases"),
        ("study: {}\nstudy: {}", "line 2: key 'study' is given twice"),
        ("study:\n  seed: 1\n  seed: 2", "line 3: key 'seed' is given twice"),
        ("1: {}", "key 1 is not a word"),
        ("- 1", "a configuration is a mapping"),
        ("", "a configuration is a mapping"),
        ("study: !!python/object/apply:os.system ['true']", "not YAML"),
        ("study: {name: \x00}", "not YAML"),
        ("? {a: b}\n: 1", ""),
        ("[" * 3000, "not"),
        ('run: {root: "a\\0b"}', "a character that no text may hold"),
        ("study: {seed: 0x" + "F" * 5000 + "}", "line 1: a whole number of 20,000 bits is too large"),
    ],
)
def test_invalid_yaml_is_refused(written, text, message):
    error = refusal(read_config, written(text))
    assert message in error.message and error.where.endswith("space.yaml")


def test_unreadable_file_is_refused(tmp_path, written):
    path = written({"study": {"seed": 1}})
    missing = refusal(read_config, path.replace("space", "spaec"))
    assert "no such file" in missing.message and missing.nearest == "space.yaml"
    assert "cannot be read" in refusal(read_config, str(tmp_path)).message
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(read_config, str(binary)).message
    (tmp_path / "huge.yaml").write_text("#" * (2**20 + 1))
    assert "larger than" in refusal(read_config, str(tmp_path / "huge.yaml")).message


@pytest.mark.parametrize(
    "override, message, nearest",
    [
        ("study.seeed=1", "unknown setting 'study.seeed'", "study.seed"),
        ("seed=1", "not of the form", None),
        ("study.seed", "not of the form", None),
        ("study.seed=[1", "not YAML", None),
        ("study.seed=x", "study.seed 'x'", None),
        ("study.seed=-1", "study.seed -1", None),
        ("study.name=1e3", "put it into quotes", None),
        ("training.images=100", "training.images 100 is not a multiple", None),
        ("training.images=1e3", "training.images 1000 is not a multiple", None),
        ("model.depth=3", "model.width 192 is not a multiple of model.heads 128", None),
        ("loss.lambda_1=0.01", "space.loss.lambda_1 searches it", None),
        ("loss.reference=uniform", "space.loss.reference fixes it at 'normal'", "normal"),
    ],
)
def test_invalid_override_is_refused(written, override, message, nearest):
    fixed = {"role": "fixed", "type": "categorical", "choices": ["normal"]}
    path = written(
        {"study": {"seed": 1}, "model": {"heads": 128}, "space": {"loss.lambda_1": LAMBDA, "loss.reference": fixed}}
    )
    assert read_config(path, ["loss.reference=normal"]).loss.reference == "normal"
    error = refusal(read_config, path, [override])
    assert message in error.message and error.nearest == nearest
    assert error.where.startswith("command line")


def test_error_names_the_place_of_the_mistake(written):
    path = written({"study": {"seed": 1}})
    assert refusal(lambda: read_config(path, trials=0)).where == "--trials"
    assert refusal(lambda: read_config(path, name="a/b")).where == "--study"
    assert "is given twice" in refusal(lambda: read_config(path, ["study.trials=4"], trials=5)).message
    assert (
        "training.images is given twice"
        in refusal(read_config, path, ["training.images=64000", "training.images=32000"]).message
    )
    bad = written({"training": {"images": 100}})
    assert refusal(read_config, bad, ["study.seed=2"]).where == bad
    assert read_config(bad, ["training.images=6400"]).training.images == 6400


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.e3", 1e3),
        (".5e-2", 5e-3),
        ("-1e3", -1e3),
        ("+.5", 0.5),
        ("1.0e-3", 1e-3),
        ("12", 12),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
        ("0x1e3", 0x1E3),
        (".", "."),
        ("1.2.3", "1.2.3"),
    ],
)
def test_yaml_numbers(text, value):
    read = parse_yaml(f"a: {text}", "x")["a"]
    assert read == value and type(read) is type(value)


def test_learning_rates_in_common_notations(written):
    rate = "{role: nuisance, type: float, low: 1e-4, high: 1e-2, log: true, baseline: 1e-3}"
    config = read_config(
        written(f"training: {{learning_rate: 2e-3, images: 6.4e4}}\nspace: {{training.learning_rate: {rate}}}")
    )
    assert config.space["training.learning_rate"].baseline == 1e-3
    assert (config.training.learning_rate, config.training.images) == (2e-3, 64000)
    choices = "space: {training.learning_rate: {role: nuisance, type: categorical, choices: [%s]}}"
    assert read_config(written(choices % "1e-3, 2e-3")).space["training.learning_rate"].choices == (1e-3, 2e-3)
    assert "'1e-3' is a text" in refusal(read_config, written(choices % "'1e-3', 2e-3")).message
    quoted = rate.replace("baseline: 1e-3", "baseline: '1e-3'")
    assert (
        "a number is expected" in refusal(read_config, written(f"space: {{training.learning_rate: {quoted}}}")).message
    )


def test_name_that_looks_like_a_number_reads_back(written):
    config = read_config(written("study: {name: '1e3', question: '2E-4'}"))
    assert read_config(written(dump_yaml(config.tree()))) == config
    assert read_config(written("study: {}"), ["study.name='1e3'"]).study.name == "1e3"


def test_overrides_replace_values_of_the_file(written):
    path = written("study: {seed: 1, name: a}\ntraining:\n")
    config = read_config(path, ["study.seed=5", "loss.lambda_1=1e-3", "inference.search_cfg_scales=[0, 3]"], name="b")
    assert (config.study.seed, config.study.name, config.loss.lambda_1) == (5, "b", 1e-3)
    assert config.inference.search_cfg_scales == (0.0, 3.0)
    assert "'study' is not a mapping" in refusal(lambda: read_config(written("study: 3"), name="b")).message
    assert "'study' is not a mapping" in refusal(read_config, written("study: [3]"), ["study.seed=1"]).message


def test_written_configuration_reads_back():
    config = validate(
        {
            "study": {"constraints": {"nll_token": {"max_above_baseline": 0.05}}, "further_metrics": ["is"]},
            "space": {"loss.lambda_1": LAMBDA},
        },
        "x",
    )
    again = validate(parse_yaml(dump_yaml(config.tree()), "y"), "y")
    assert again == config and content_hash(again.tree()) == content_hash(config.tree())
    assert content_hash(again.with_values({"study.seed": 1}).tree()) != content_hash(config.tree())


def test_every_dotted_name_can_be_replaced():
    config = Config()
    assert len(dotted_names()) == len(set(dotted_names())) > 60
    for name in dotted_names():
        assert config.with_values({name: config.get(name)}) == config, name


@pytest.mark.parametrize(
    "values, message",
    [
        ({"nope": 1}, "unknown setting 'nope'"),
        ({"nope.x": 1}, "unknown setting 'nope.x'"),
        ({"loss.lamda_1": 1}, "did you mean 'loss.lambda_1'"),
    ],
)
def test_unknown_name_cannot_be_replaced(values, message):
    with pytest.raises(ConfigError, match=message):
        Config().with_values(values)


def test_every_setting_has_a_description():
    for section, field in Config.model_fields.items():
        for name, setting in getattr(field.annotation, "model_fields", {}).items():
            assert setting.description and setting.description.endswith("."), f"{section}.{name}"


WORDS = {
    "on": "on",
    "no": "no",
    "2026-11-25": "2026-11-25",
    "1:30": "1:30",
    "true": True,
    "null": None,
    "010": 10,
    "1_000": 1000,
    "1e-3": 1e-3,
    "'1e-3'": "1e-3",
    "": None,
}


@pytest.mark.parametrize("word", WORDS)
def test_yaml_words_mean_the_same_everywhere(word):
    value = WORDS[word]
    for text in (f"a: {word}", f"{{a: {word}}}"):
        assert parse_yaml(text, "x") == {"a": value}
    assert parse_yaml(dump_yaml({"a": word, "b": value}), "x") == {"a": word, "b": value}


def test_words_of_a_choice_need_no_quotes(written):
    for fused in ("on", "off", "auto"):
        assert read_config(written(f"training: {{fused: {fused}}}")).training.fused == fused
        assert read_config(written("study:"), [f"training.fused={fused}"]).training.fused == fused
    config = read_config(written("training: {compile: yes}\ndata: {classes: [no, on]}\nstudy: {name: 2026-11-25}"))
    assert (config.training.compile, config.data.classes, config.study.name) == (True, ("no", "on"), "2026-11-25")
    assert config == read_config(written(dump_yaml(config.tree())))


def test_no_label_dropout_without_guidance():
    tree = {"model": {"label_dropout": 0}, "inference": {"search": "joint", "cfg_scale": 0}}
    config = validate({**tree, "study": {"confirm_axes": ["temperature"]}}, "x")
    confirmation = {"inference.search": "per_checkpoint", "inference.search_axes": config.study.confirm_axes}
    assert config.with_values(confirmation).model.label_dropout == 0 and not config.inference.searches_guidance
