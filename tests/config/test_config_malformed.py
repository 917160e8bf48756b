"""Any content of a file or command line gives a Config or a ConfigError of one line, never another exception.

10,000 of them: 2,400 trees, 2,400 spaces, 1,800 torn files, 1,700 texts, 1,700 command lines.
"""

from __future__ import annotations

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uvar_tune.config.loading import parse_yaml, read_config, validate
from uvar_tune.config.schema import Config, dotted_names
from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.errors import ConfigError

MANY = settings(
    max_examples=2400,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(10**400)
    | st.sampled_from(["normal", "semantic", "kl", "share", "profile", "tpe", "median", 1e308, 64, 0.1, -1])
)
SHALLOW = (
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(["a", "max", "", "é\n"]), SCALARS, max_size=2)
)
PLAIN = (
    SCALARS
    | SHALLOW
    | st.lists(SHALLOW, max_size=2)
    | st.dictionaries(st.sampled_from(["low", "b", "1"]), SHALLOW, max_size=2)
)
SECTIONS = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if "." in " ".join(other for other in dotted_names() if other.startswith(name + "."))
}
ENTRY = st.dictionaries(
    st.sampled_from(list(SpaceEntry.model_fields)),
    PLAIN
    | st.sampled_from(["scientific", "nuisance", "inference", "fixed", "float", "int", "categorical"])
    | st.dictionaries(st.sampled_from(dotted_names()), PLAIN, max_size=2),
    max_size=9,
)


def section(name: str):
    keys = [other.split(".")[1] for other in dotted_names() if other.startswith(name + ".")]
    return st.dictionaries(st.sampled_from(keys), PLAIN, max_size=4) | PLAIN


TREES = st.fixed_dictionaries(
    {},
    optional={
        **{name: section(name) for name in SECTIONS},
        "space": st.dictionaries(st.sampled_from(dotted_names()) | st.text(max_size=8), ENTRY | PLAIN, max_size=3)
        | PLAIN,
        "final": st.dictionaries(st.sampled_from(dotted_names()) | st.text(max_size=8), PLAIN, max_size=3) | PLAIN,
        "verdict": PLAIN,
        "provenance": PLAIN,
        "other": PLAIN,
    },
)


def accepted(read, *arguments) -> bool:
    """Whether it was accepted; a refusal must be a ConfigError of one line."""
    try:
        read(*arguments)
    except ConfigError as error:
        assert error.message and "\n" not in error.message
        return False
    return True


@MANY
@given(TREES)
def test_random_trees_raise_only_config_errors(tree):
    accepted(validate, tree, "tree")


@MANY
@given(st.dictionaries(st.sampled_from(dotted_names()), ENTRY, min_size=1, max_size=3))
def test_random_spaces_raise_only_config_errors(space):
    accepted(validate, {"space": space}, "space")


@settings(MANY, max_examples=1800)
@given(TREES, st.randoms(use_true_random=False))
def test_damaged_yaml_raises_only_config_errors(tree, random):
    text = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)
    for _ in range(3):
        at = random.randrange(len(text) + 1)
        text = (
            text[:at]
            + random.choice(["", ":", "\t", "*a", "&b ", "}", "[", "- ", "!!map ", "\x07", "'", "%", "? "])
            + text[at + random.randrange(3) :]
        )
    if accepted(parse_yaml, text, "text"):
        tree = parse_yaml(text, "text")
        if isinstance(tree, dict):
            accepted(validate, tree, "text")


@settings(MANY, max_examples=1700)
@given(st.text(max_size=40))
def test_random_text_raises_only_config_errors(text):
    accepted(parse_yaml, text, "text")


@settings(MANY, max_examples=1700)
@given(
    st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from(dotted_names()) | st.text(max_size=8),
            st.text(max_size=8) | SCALARS.map(str),
        ),
        max_size=3,
    ),
    st.text(max_size=4),
)
def test_random_overrides_raise_only_config_errors(tmp_path_factory, overrides, name):
    path = tmp_path_factory.getbasetemp() / "plain.yaml"
    path.write_text("study: {seed: 1}")
    accepted(lambda: read_config(path, overrides, name=name))
