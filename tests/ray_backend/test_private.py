"""Canaries: every private symbol of Ray that the package uses exists, and what happens without it is what is documented.

If one of these fails after an upgrade of Ray, adapt `uvar_tune/ray_backend/_private.py`.
"""

from __future__ import annotations

import importlib
import inspect
import os

import pytest

from uvar_tune.ray_backend import _private

SYMBOLS = [
    ("ray.experimental.internal_kv", "_internal_kv_put"),
    ("ray.experimental.internal_kv", "_internal_kv_get"),
    ("ray.experimental.internal_kv", "_internal_kv_del"),
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTERS_ENV_VAR"),
    ("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS"),
    ("ray._private.utils", "get_num_cpus"),
    ("ray.autoscaler.v2.utils", "is_autoscaler_v2"),
    ("ray._raylet", "GcsClient"),
    ("ray._raylet", "AuthenticationTokenLoader"),
    ("ray.core.generated.autoscaler_pb2", "GetClusterStatusReply"),
    ("ray.core.generated.node_manager_pb2", "PrestartWorkersRequest"),
    ("ray.core.generated.node_manager_pb2_grpc", "NodeManagerServiceStub"),
    ("ray.core.generated.runtime_environment_pb2", "RuntimeEnvInfo"),
    ("ray._private.grpc_utils", "init_grpc_channel"),
]


@pytest.mark.parametrize(("module", "name"), SYMBOLS, ids=[name for _, name in SYMBOLS])
def test_symbol_exists(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_symbols_have_the_expected_parameters():
    from ray._private.utils import get_num_cpus
    from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest

    fields = {field.name for field in PrestartWorkersRequest.DESCRIPTOR.fields}
    assert {"language", "job_id", "num_workers", "keep_alive_duration_secs", "runtime_env_info"} <= fields
    assert "override_docker_cpu_warning" in inspect.signature(get_num_cpus).parameters


def test_trainer_has_the_overridden_methods():
    from ray.train.torch import TorchTrainer

    for name in ("_register_sigint_handler", "_create_default_callbacks"):
        assert callable(getattr(TorchTrainer, name))
    trainer = _private.quiet_torch_trainer()(lambda: None)
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    standard = {type(callback).__name__ for callback in TorchTrainer(lambda: None)._create_default_callbacks()}
    assert standard - names == {"DatasetsCallback"}


def test_without_the_key_value_store_nothing_is_kept(monkeypatch):
    for name in ("_internal_kv_put", "_internal_kv_get", "_internal_kv_del"):
        monkeypatch.delattr(f"ray.experimental.internal_kv.{name}")
    assert (_private.kv_put("key", b"1"), _private.kv_get("key"), _private.kv_delete("key")) == (False, None, False)


def test_without_private_functions_defaults_hold(monkeypatch):
    monkeypatch.delattr("ray._private.utils.get_num_cpus")
    assert _private.count_cpus() == os.cpu_count()
    monkeypatch.delattr("ray.autoscaler.v2.utils.is_autoscaler_v2")
    assert _private.autoscaler_node_types() == set()
    monkeypatch.delattr("ray._raylet.AuthenticationTokenLoader")
    assert _private.has_auth_token() is False
    assert _private.reload_auth_token() is None
    from ray.train.torch import TorchTrainer

    owner = next(base for base in TorchTrainer.__mro__ if "_create_default_callbacks" in vars(base))
    monkeypatch.delattr(owner, "_create_default_callbacks")
    assert _private.quiet_torch_trainer().__name__ == "TorchTrainer"


def test_binding_to_loopback_is_undone(monkeypatch):
    from ray._private import ray_constants

    monkeypatch.delenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, raising=False)
    before = ray_constants.ENABLE_RAY_CLUSTER
    with _private.bind_to_loopback():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER is before
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR not in os.environ
