import pytest

from uvar_tune.config.schema import Config
from uvar_tune.io.uri import redact_secrets, redact_url
from uvar_tune.tracking.parameters import run_parameters, selected_parameters, study_parameters


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ann:s3cret@host:5000/path", "https://host:5000/path"),
        ("https://ann:s3@cret@host", "https://host"),
        ("postgresql://ann:s3cret@db/mlflow?password=s3cret", "postgresql://db/mlflow"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
    ],
)
def test_url_is_redacted(uri, seen):
    assert redact_url(uri) == seen
    assert "s3" not in redact_url(uri)


@pytest.mark.parametrize(
    "text",
    [
        "API request to http://ann:s3cret%21@host:5000/api failed\nTraceback: http://ann:s3cret%21@host",
        "could not connect as ann:s3cret%21",
        "password authentication failed (s3cret!)",
    ],
)
def test_secrets_are_redacted_in_messages(text):
    assert "s3cret" not in redact_secrets(text, "http://ann:s3cret%21@host:5000")


@pytest.mark.parametrize(
    "query", ["user=ann&password=hunter2", "sslkey=hunter2", "passwd=hunter2", "odbc_connect=DSN%3Ba&PWD%3Dhunter2"]
)
def test_password_in_the_query_is_redacted(query):
    assert "hunter2" not in redact_secrets("hunter2 was refused", f"postgresql://db/mlflow?{query}")
    assert "hunter2" not in redact_secrets(
        f"postgresql://db/mlflow?{query} was refused", f"postgresql://db/mlflow?{query}"
    )


def test_storage_url_parameter_has_no_password():
    config = Config.model_validate({"run": {"storage": "postgresql://ann:s3cret@db/optuna"}})
    assert study_parameters(config)["run.storage"] == "postgresql://db/optuna"


def test_run_parameters_have_sample_count():
    space = {"inference.cfg_scale": {"role": "inference", "type": "float", "low": 0, "high": 4}}
    config = Config.model_validate({"space": space, "evaluation": {"samples": 400}})
    actual = run_parameters(config, {"loss.lambda_1": 0.5})
    assert actual["evaluation.samples"] == 400 and actual["loss.lambda_1"] == 0.5
    assert selected_parameters(config) == {"inference.cfg_scale"} and "inference.cfg_scale" not in actual
    joint = Config.model_validate({"space": space, "inference": {"search": "joint"}})
    assert run_parameters(joint, {"inference.cfg_scale": 3.0})["inference.cfg_scale"] == 3.0
