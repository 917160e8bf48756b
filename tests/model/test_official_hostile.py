"""Hostile official files: one line of error, and no memory taken."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from uvar_tune.config.schema import ModelConfig, TokenizerConfig
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation.fidelity import _check_state_dict
from uvar_tune.io.safe_load import read_tensors
from uvar_tune.io.tensor_file import load_tensors
from uvar_tune.model import VAR, VQVAE, load_official, save_official

SCALES = (1, 2, 4)
BOOK, LEVELS, MASK = "quantize.embedding.weight", "lvl_1L", "attn_bias_for_masking"


@pytest.fixture(scope="module")
def states():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqvae = VQVAE(
            TokenizerConfig(vocab_size=24, code_dim=8, channels=16, channel_multipliers=(1, 2), scales=SCALES)
        )
        return save_official(
            vqvae, VAR(ModelConfig(depth=2, width=32, heads=2), scales=SCALES, vocab_size=24, code_dim=8, num_classes=4)
        )


class Made:
    """Pickled as a function call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def quantized():
    return torch.quantize_per_tensor(torch.zeros(24, 8), 0.1, 0, torch.qint8)


@pytest.mark.parametrize("old", [False, True], ids=["archive", "old"])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.zeros(1).expand(10**11, 8), "claims 3,200,000,000,000 bytes and holds 4"),
        (lambda: torch.zeros(24, 8, device="meta"), "meta"),
        (quantized, "_rebuild_qtensor"),
        (lambda: torch.zeros(24, 8).to_sparse(), "_rebuild_sparse"),
        (lambda: torch.zeros(24, 8, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(10**11, 0), r"shape \(100000000000, 0\)"),
        (lambda: Made(bytearray, 10**9), "bytearray"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_weights(tmp_path, states, old, make, message):
    path = tmp_path / "vae.pth"
    torch.save({**states[0], BOOK: make()}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(ConfigError, match=f"vae.pth: .*({message})"):
        load_official(path, scales=SCALES)


def test_storage_shared_a_hundred_times(tmp_path):
    flat = torch.zeros(2**16)
    torch.save({str(i): flat.view(-1) for i in range(100)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="claim 26,214,400 bytes"):
        load_tensors(tmp_path / "x.pth")


class Claims(pickle.Pickler):
    """Pickles tensors as `torch.save` does, but claims storages of 100,000 numbers."""

    def persistent_id(self, thing):
        return (
            ("storage", torch.FloatStorage, "0", "cpu", 10**5, None)
            if isinstance(thing, torch.UntypedStorage)
            else None
        )


def test_legacy_file_without_storages(tmp_path):
    """Without storage keys at its end, PyTorch allocates the storages and fills none."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.UntypedStorage(4), 0, (10**5,), (1,), False, OrderedDict())

    with (tmp_path / "x.pth").open("wb") as handle:
        for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}, {"w": Tensor()}, []):
            Claims(handle, 2).dump(part)
    assert torch.load(tmp_path / "x.pth", weights_only=True)["w"].shape == (10**5,)
    with pytest.raises(ValueError, match="claim 400,000 bytes"):
        load_tensors(tmp_path / "x.pth")


def repacked(path, **options):
    """Pack the archive as another tool does."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    path.write_bytes(stream.getvalue())


def test_zip_bomb_is_refused(tmp_path, states):
    path = tmp_path / "vae.pth"
    torch.save({**states[0], "much": torch.zeros(2**20)}, path)
    repacked(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match="expands to .* bytes, but has"):
        load_official(path, scales=SCALES)


def test_other_readers_refuse_zip_bomb(tmp_path):
    """A training state, and the weights of a feature network, which are inspected on the meta device."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3), "b": torch.ones(3).half()}, path)
    assert list(read_tensors(path)) == ["a", "b"]
    _check_state_dict(path)
    torch.save({"much": torch.zeros(2**20)}, path)
    repacked(path, compression=zipfile.ZIP_DEFLATED)
    for read in (read_tensors, _check_state_dict):
        with pytest.raises(ConfigError, match="expands to"):
            read(path)


def test_archive_with_two_directories(tmp_path, states):
    """Its content depends on the directory a reader uses: the one at the stated offset, or the one before the end."""
    path = tmp_path / "vae.pth"
    torch.save(states[0], path)
    repacked(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory = content[archive.start_dir : -22]
    path.write_bytes(content[:-22] + directory + content[-22:])
    with pytest.raises(ConfigError, match="readers disagree"):
        load_official(path, scales=SCALES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("old", [False, True], ids=["archive", "old"])
def test_unusual_official_files_are_read(tmp_path, states, dtype, old):
    """Half precision, transposed, views of one storage, parameters, a trainer checkpoint."""
    flat = torch.cat([value.to(dtype).flatten() for value in states[0].values()])
    parts = flat.split([value.numel() for value in states[0].values()])
    vae = {key: part.view(value.shape) for part, (key, value) in zip(parts, states[0].items(), strict=True)}
    vae[BOOK] = torch.nn.Parameter(states[0][BOOK].to(dtype).t().contiguous()).t().detach()
    torch.save(
        {"trainer": {"vae_local": vae}, "flat": [flat], "args": {"step": torch.tensor(3), "shape": flat.shape}},
        tmp_path / "vae.pth",
        _use_new_zipfile_serialization=not old,
    )
    loaded = load_official(tmp_path / "vae.pth", scales=SCALES)[0].state_dict()
    assert all(torch.equal(loaded[key], value.to(dtype).float()) for key, value in states[0].items())


def test_repacked_archive_is_read(tmp_path, states):
    torch.save(states[0], tmp_path / "vae.pth")
    repacked(tmp_path / "vae.pth")
    assert load_official(tmp_path / "vae.pth", scales=SCALES)[0].scales == SCALES


@pytest.mark.parametrize(
    "which, changes, message",
    [
        (1, {LEVELS: torch.tensor([[10**12]])}, "does not count"),
        (1, {LEVELS: torch.tensor([[-1, 0]])}, "does not count"),
        (1, {LEVELS: torch.zeros(1, 0)}, "does not count"),
        (1, {LEVELS: torch.tensor([[0, 1, 2]])}, "does not count"),
        (1, {LEVELS: torch.zeros(1, 10**6, dtype=torch.uint8)}, f"{MASK} is not what the scales .1000. make"),
        (1, {"word_embed.weight": torch.zeros(0, 8)}, "none of them 0"),
        (1, {"word_embed.weight": torch.zeros(33, 8)}, "width 33 is not a multiple"),
        (0, {"encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)}, "none of them 0"),
        (0, {"encoder.conv_in.weight": torch.zeros(17, 3, 3, 3)}, "no network has the sizes"),
        (0, {"quantize.ema_vocab_hit_SV": torch.tensor(1.0)}, "expected 2 dimensions"),
        (0, {7: torch.zeros(1)}, "no state dict"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, states, which, changes, message):
    torch.save({**states[which], **changes}, tmp_path / "x.pth")
    files = [states[0], states[1]]
    files[which] = tmp_path / "x.pth"
    with pytest.raises(ConfigError, match=f"x.pth: .*{message}"):
        load_official(*files)


@pytest.mark.parametrize("place", ["/dev/zero", "/"])
def test_device_is_refused(place):
    with pytest.raises(ConfigError, match="not a regular file"):
        load_official(place)
