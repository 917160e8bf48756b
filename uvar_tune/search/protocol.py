"""Numbers of one study are compared with each other, so all of them must have been made under one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uvar_tune.errors import ConfigError


def require_same_protocol(protocol: Mapping[str, Any], known: Mapping[str, Any], *, where: str, of: str) -> None:
    """ConfigError naming the first field in which ``protocol`` (of what ``where`` says) is not ``known`` (of ``of``)."""
    for name in dict.fromkeys([*known, *protocol]):
        if protocol.get(name) != known.get(name):
            raise ConfigError(
                f"protocol.{name} is {protocol.get(name)!r}, and {known.get(name)!r} in {of}: the numbers cannot be "
                "compared",
                where=where,
            )


def stored_protocol(storage, study: str) -> dict[str, Any]:
    """The protocol of the first trial of a search that has a score; {} where there is none yet."""
    try:
        study_id = storage.get_study_id_from_name(study)
    except KeyError:
        return {}
    trials = storage.get_all_trials(study_id, deepcopy=False)
    return next((dict(trial.user_attrs["protocol"]) for trial in trials if trial.user_attrs.get("protocol")), {})
