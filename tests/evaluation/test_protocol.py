import dataclasses
import pickle

import pytest
import torch

from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.protocol import Origin, Protocol, ProtocolMismatch, fidelity_protocol, require_equal

PROTOCOL = Protocol(
    metric_version="1",
    samples=1000,
    reference="aa",
    feature_network="digits",
    weights="bb",
    resizer="none",
    precision="float32",
    cfg_convention="ramp",
)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Protocol)])
def test_every_field_must_be_equal(field):
    require_equal(PROTOCOL, dataclasses.replace(PROTOCOL))
    other = dataclasses.replace(PROTOCOL, **{field: 2000 if field == "samples" else "other"})
    with pytest.raises(ProtocolMismatch, match=f"protocol.{field}") as caught:
        require_equal(PROTOCOL, other)
    assert isinstance(caught.value, ConfigError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_protocol_and_origin_round_trip():
    origin = Origin(configuration="cc", checkpoint="c/1", seeds="sampling-b 0", cfg_scale=1.5, top_k=900, top_p=0.95)
    assert Protocol.from_dict(PROTOCOL.as_dict()) == PROTOCOL and Origin.from_dict(origin.as_dict()) == origin
    with pytest.raises(ConfigError, match=r"protocol: missing fields \['samples'\], unknown fields \['sample'\]"):
        Protocol.from_dict(
            {("sample" if key == "samples" else key): value for key, value in PROTOCOL.as_dict().items()}
        )


def test_protocol_hashes_the_reference(extractor):
    images = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
    first = fidelity_protocol(extractor, images, samples=20, resizer="none", cfg_convention="ramp")
    require_equal(
        first, fidelity_protocol(extractor, images.clone(), samples=20, resizer="none", cfg_convention="ramp")
    )
    images[3, 0, 0, 0] = 1
    with pytest.raises(ProtocolMismatch, match="protocol.reference"):
        require_equal(first, fidelity_protocol(extractor, images, samples=20, resizer="none", cfg_convention="ramp"))
