"""Files and names from elsewhere that mean harm: refused in one line, and nothing of theirs has run, unfolded or been reached."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from uvar_tune.commands.final_run import run_final
from uvar_tune.commands.train_tokenizer import run_tokenizer
from uvar_tune.config.loading import read_config
from uvar_tune.config.schema import DataConfig, ModelConfig, TokenizerConfig
from uvar_tune.data import load_images
from uvar_tune.data.folder import read_image
from uvar_tune.data.verification import UNREADABLE
from uvar_tune.errors import ConfigError
from uvar_tune.evaluation import open_extractor
from uvar_tune.model import VAR, VQVAE, load_official, start_from
from uvar_tune.paper.checkpoint_evaluation import LoadedCheckpoint
from uvar_tune.pipeline import restore
from uvar_tune.study_dir import StudyDirectory
from uvar_tune.training import load_checkpoint, load_tokenizer, load_training_state, save_checkpoint, save_tokenizer

LEVELS = 12  # each level of a bomb names the one below it ten times: 10^12 leaves
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, LEVELS))
DEEP = 200_000


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def refusal(read, *arguments, **options) -> str:
    """The one line in which it is refused; neither much time nor much memory may go."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as caught:
        read(*arguments, **options)
    text = str(caught.value)
    assert text and "\n" not in text and len(text) < 2000
    assert (
        time.process_time() - began < 20 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    )  # KiB
    return text


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "it-has-run"
    yield path
    assert not path.exists()


def networks():
    vqvae = VQVAE(TokenizerConfig(vocab_size=24, code_dim=8, channels=16, channel_multipliers=(1, 2), scales=(1, 2, 4)))
    return vqvae, VAR(
        ModelConfig(depth=2, width=32, heads=2), scales=(1, 2, 4), vocab_size=24, code_dim=8, num_classes=4
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A valid checkpoint of a small VAR, with its tokenizer next to it."""
    vqvae, var = networks()
    save_tokenizer(tmp_path / "tokenizer", vqvae)
    config = {
        "data": {"image_size": 8},
        "tokenizer": {"scales": [1, 2, 4], "channel_multipliers": [1, 2]},
        "model": {"depth": 2, "width": 32, "heads": 2},
    }
    save_checkpoint(
        tmp_path / "c" / "64",
        var_state=var.state_dict(),
        config=config,
        tokenizer={"path": str(tmp_path / "tokenizer")},
        training_state={"images": 64},
    )
    assert restore(tmp_path / "c" / "64")[0].num_classes == 4
    return tmp_path / "c" / "64"


def replace(directory: Path, name: str, content: bytes) -> None:
    """Put other content there, with a manifest that vouches for it."""
    (directory / name).write_bytes(content)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def saved(thing) -> bytes:
    stream = io.BytesIO()
    torch.save(thing, stream)
    return stream.getvalue()


def pickles(canary: Path) -> dict[str, bytes]:
    """A pickle that would run code, in each wrapping that `torch.load` opens."""
    old = io.BytesIO()
    torch.save({"x": Evil(canary)}, old, _use_new_zipfile_serialization=False)
    return {
        "zip": saved({"x": Evil(canary)}),
        "old": old.getvalue(),
        "bare": pickle.dumps(Evil(canary)),
        "among tensors": saved({"head.weight": torch.ones(2), "x": Evil(canary)}),
    }


def test_pickles_of_these_tests_run_code_if_loaded(tmp_path):
    """Else the tests below could not fail."""
    for i, content in enumerate(pickles(tmp_path / "ran").values()):
        (tmp_path / "ran").unlink(missing_ok=True)
        path = tmp_path / str(i)
        path.write_bytes(content)
        try:
            torch.load(path, weights_only=False)
        except Exception:  # it has run, and is no checkpoint besides
            pass
        assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrapping", ["zip", "old", "bare", "among tensors"])
def test_pickle_that_runs_code_is_refused(tmp_path, canary, checkpoint, wrapping):
    content = pickles(canary)[wrapping]
    path = tmp_path / "evil.pth"
    path.write_bytes(content)
    vqvae, var = networks()
    assert "evil.pth" in refusal(load_official, path)
    assert "evil.pth" in refusal(load_official, path, path)
    assert "evil.pth" in refusal(load_tokenizer, path)
    assert "evil.pth" in refusal(start_from, var, path)
    assert "evaluation.weights" in refusal(open_extractor, "inception-v3-compat", weights=str(path))
    replace(checkpoint, "training.pt", content)
    assert load_checkpoint(checkpoint).images == 64  # its weights can be used
    assert "more than plain tensors" in refusal(load_checkpoint, checkpoint, training_state=True)
    save_tokenizer(tmp_path / "stage1", vqvae, training_state={"images": 64})
    replace(tmp_path / "stage1", "training.pt", content)
    assert "more than plain tensors" in refusal(load_training_state, tmp_path / "stage1")


def test_pickle_in_place_of_safetensors_is_refused(tmp_path, canary, checkpoint):
    content = saved({"x": Evil(canary)})
    replace(checkpoint, "var.safetensors", content)
    assert "no safetensors file" in refusal(restore, checkpoint)
    replace(tmp_path / "tokenizer", "vqvae.safetensors", content)
    assert "no safetensors file" in refusal(load_tokenizer, tmp_path / "tokenizer")
    replace(checkpoint, "var.safetensors", b"\xff" * 7 + b"\x7f" + b"{}")  # a header of 2^62 bytes, by its length field
    assert "no safetensors file" in refusal(restore, checkpoint)


def test_damaged_official_file_is_refused(tmp_path):
    """Every byte that decides how the pickle is read may be another: a refusal, or the tensors."""
    path = tmp_path / "vae.pth"
    for _ in altered(path, {"a": torch.ones(2)}):
        assert "vae.pth" in refusal(load_official, path)


def test_damaged_feature_network_is_refused(tmp_path):
    path = tmp_path / "inception.pth"
    for _ in altered(path, [torch.ones(2)]):  # no state dict, also where it is read
        assert "inception.pth" in refusal(open_extractor, "inception-v3-compat", weights=path)


def altered(path, tree):
    """Writes ``tree`` to a file once for every byte that decides how its pickle is read, that byte changed."""
    with zipfile.ZipFile(io.BytesIO(saved(tree))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    [program] = [name for name in parts if name.endswith("data.pkl")]
    for at in range(len(parts[program])):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                changed = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :] if name == program else content
                archive.writestr(name, changed)
        yield at


YAML = {
    "aliases": BOMB,
    "lists": "study: " + "[" * DEEP,
    "mappings": "study: " + "{a: " * DEEP,
    "blocks": "study: " + "- " * DEEP + "x",
    "keys": "? " * 5000,
    "a call": 'study:\n  name: !!python/object/apply:os.system ["touch it-has-run"]',
    "a function": "study: !!python/name:os.system x",
    "a number": "study: {trials: " + "9" * 10**5 + "}",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_that_expands_or_runs_is_refused(tmp_path, canary, checkpoint, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    assert "space.yaml" in refusal(read_config, path)
    replace(checkpoint, "config.yaml", text.encode())
    assert "config.yaml" in refusal(restore, checkpoint)
    assert "config.yaml" in refusal(LoadedCheckpoint, str(checkpoint))


def test_deeply_nested_json_is_refused(tmp_path, checkpoint):
    deep = ("[" * DEEP).encode()
    replace(checkpoint, "tokenizer.json", deep)
    assert "tokenizer.json" in refusal(restore, checkpoint)
    replace(tmp_path / "tokenizer", "settings.json", deep)
    assert "settings.json" in refusal(load_tokenizer, tmp_path / "tokenizer")
    (checkpoint / "manifest.json").write_bytes(deep)
    assert "manifest.json" in refusal(load_checkpoint, checkpoint)


@pytest.mark.parametrize("entry", [b"[]", b"{}", b'{"path": 3, "sha256": []}', b'{"path": "/etc/passwd"}'])
def test_invalid_tokenizer_entry_is_refused(checkpoint, entry):
    replace(checkpoint, "tokenizer.json", entry)
    refusal(restore, checkpoint)


def test_settings_of_too_much_memory_are_refused(tmp_path, checkpoint):
    text = (checkpoint / "config.yaml").read_text()
    for width in (2**13, 2**16):
        replace(checkpoint, "config.yaml", text.replace("width: 32", f"width: {width}").encode())
        assert "parameters, its weights are" in refusal(restore, checkpoint)
    settings = json.loads((tmp_path / "tokenizer" / "settings.json").read_text())
    for change in (
        {"channels": 2**14},
        {"channels": 2**40},
        {"vocab_size": 2**50},
        {"vocab_size": -1},
        {"channels": "many"},
        {"other": 1},
        {"scales": [0]},
        {"scales": 7},
        {"channel_multipliers": []},
    ):
        replace(tmp_path / "tokenizer", "settings.json", json.dumps({**settings, **change}).encode())
        refusal(load_tokenizer, tmp_path / "tokenizer")


def test_settings_of_too_many_modules_are_refused(tmp_path, checkpoint):
    """Refused before one is made: each takes its time and memory, whatever the size of its tensors."""
    replace(
        checkpoint, "config.yaml", (checkpoint / "config.yaml").read_text().replace("depth: 2", "depth: 200").encode()
    )
    assert "200 blocks, its weights are" in refusal(restore, checkpoint)
    settings = json.loads((tmp_path / "tokenizer" / "settings.json").read_text())
    for change, message in (
        ({"blocks": 200}, "of 200 blocks"),
        ({"channel_multipliers": [1] * 200}, "200 levels"),
        ({"scales": [1] * 200, "share_quant_resi": 0}, "200 scales"),
        ({"share_quant_resi": 200}, "200 φ"),
    ):
        replace(tmp_path / "tokenizer", "settings.json", json.dumps({**settings, **change}).encode())
        assert message in refusal(load_tokenizer, tmp_path / "tokenizer")


def test_slow_yaml_is_refused(tmp_path, checkpoint):
    (tmp_path / "space.yaml").write_text("space: [" + "[]," * 2**18 + "]")
    assert "space.yaml: more than 32,768 keys and values" in refusal(read_config, tmp_path / "space.yaml")
    replace(checkpoint, "config.yaml", b"a: 1 #" + b"x" * 2**20)
    assert "config.yaml: cannot be read (larger than 1048576 bytes)" in refusal(restore, checkpoint)
    replace(checkpoint, "config.yaml", b"a: [" + b"[]," * 2**18 + b"]")
    assert "config.yaml: cannot be read (more than 32,768 keys and values)" in refusal(restore, checkpoint)


IMAGES = {
    "many pixels": lambda path: Image.new("1", (12_000, 9_000)).save(path, "PNG"),
    "a line of pixels": lambda path: Image.new("1", (80_000_000, 1)).save(
        path, "PNG"
    ),  # 18 rows of 1.4 billion when enlarged
    "a column of pixels": lambda path: Image.new("1", (1, 60_000)).save(path, "PNG"),
    "PostScript": lambda path: path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n"
    ),
    "a text that unfolds": lambda path: Image.new("1", (32, 32)).save(path, "PNG", pnginfo=_long_text()),
    "half": lambda path: path.write_bytes(_png()[:60]),
    "nothing": lambda path: path.write_bytes(b""),
}


def _png() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(stream, "PNG")
    return stream.getvalue()


def _long_text():
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("x", "y" * 100_000_000, zip=True)
    return info


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", IMAGES)
def test_decompression_bomb_is_refused(tmp_path, kind):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.png").write_bytes(_png())
    IMAGES[kind](tmp_path / "train" / "a" / "1.png")
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "train" / "a" / "1.png")
    text = refusal(load_images, DataConfig(name="folder", path=str(tmp_path), image_size=16), "train")
    assert "1 of 2 images cannot be read" in text and "1.png" in text


NAMES = (
    "../elsewhere",
    "..",
    ".",
    "/etc",
    "a/b",
    "a\\b",
    "a\n",
    "",
    ".hidden",
    "a\0b",
    "a b",
    "ä",
    "a" * 200,
    "$(touch x)",
    "'; drop table",
)


@pytest.mark.parametrize("name", NAMES)
def test_name_cannot_be_a_path(tmp_path, name):
    """Of studies (in files and at the cli), of final runs and of tokenizers."""
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"study": {"name": name}}))
    assert "study.name" in refusal(read_config, path)
    path.write_text("study: {seed: 1}")
    assert "study.name" in refusal(read_config, path, name=name)
    root = tmp_path / "runs"
    assert "name of a study" in refusal(StudyDirectory, root, name)
    config = read_config(path, [f"run.root={root}", "evaluation.extractor=digits"])
    for run in (run_tokenizer, run_final):
        refusal(
            lambda run=run: run(config, name, **({"official": None} if run is run_tokenizer else {"replay": False}))
        )
    assert sorted(found.name for found in tmp_path.iterdir()) == ["space.yaml"]


@pytest.mark.parametrize("command, options", [("report", []), ("sync", []), ("sync", ["--rebuild"])])
def test_study_name_cannot_leave_the_root(cli, tmp_path, command, options):
    (tmp_path / "other" / "mlflow").mkdir(parents=True)
    (tmp_path / "other" / "study.yaml").write_text("study: {name: other}")
    done = cli(command, "--study", "../other", "--root", tmp_path / "root", *options)
    assert done.returncode == 2 and done.stderr.startswith("error: --study: '../other' is no name"), done.stderr
    assert len(done.stderr.splitlines()) == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize("name", ["../../secret", "/etc", "..", "a/../a", "."])
def test_class_name_cannot_be_a_path(tmp_path, name):
    for place in ("data/train/a", "data/val/a", "secret"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").write_bytes(_png())
    folder = DataConfig(name="folder", path=str(tmp_path / "data"), image_size=16, classes=(name,))
    assert "data.classes" in refusal(load_images, folder, "train")
    assert "data.classes" in refusal(load_images, DataConfig(classes=(name,)), "train")


def test_free_text_settings_are_these():
    """A setting of free text is a path, or is looked up among what is known; a new one has to be put into one of these lists."""
    from uvar_tune.config.schema import Config

    paths = {"data.path", "tokenizer.path", "training.init_from", "run.root", "run.scratch", "evaluation.weights"}
    known = {
        "study.name",
        "study.metric",
        "study.rung_metric",
        "study.further_metrics",
        "study.constraints",
        "data.classes",
        "evaluation.extractor",
        "run.storage",
        "study.queue",
        "study.warm_start",
    }
    free_text = {"study.question"}
    sections = {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    found = {
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section.model_fields.items()
        if "str" in str(field.annotation).replace("'", " ").split("Literal")[0]
    }
    assert found == paths | known | free_text


@pytest.mark.parametrize("text", [b"", b"[]", b"7", b"\xff", ("[" * DEEP).encode(), b'{"runs": {"../x": "y"}}'])
def test_foreign_outbox_state_is_refused(tmp_path, text):
    """What another wrote into the study's directory makes no path of a name."""
    from uvar_tune.tracking.outbox import Outbox, run_ids

    (tmp_path / "state.json").write_bytes(text)
    assert run_ids(tmp_path) == {} and Outbox(tmp_path).load_state().offset == 0


def test_code_has_no_shell_eval_or_unsafe_load():
    """`shell=True`, `os.system` and their like stand nowhere; what loads YAML, tensors and arrays does it in its safe form."""
    import ast

    import uvar_tune

    wrong = []
    for path in Path(uvar_tune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if options.get("shell") == "True" or name in (
                "os.system",
                "os.popen",
                "eval",
                "exec",
                "pickle.loads",
                "pickle.load",
                "subprocess.getoutput",
                "yaml.unsafe_load",
                "yaml.full_load",
            ):
                wrong.append(f"{path}: {name}")
            if name == "torch.load" and options.get("weights_only") != "True":
                wrong.append(f"{path}: {name}")
            if name == "np.load" and options.get("allow_pickle") != "False":
                wrong.append(f"{path}: {name}")
            if name == "yaml.load" and options.get("Loader") != "_YamlLoader":
                wrong.append(f"{path}: {name}")
    assert not wrong, wrong


def test_invalid_model_section_is_refused(checkpoint):
    """The weights of a checkpoint that has no class embedding."""
    from safetensors.torch import save

    replace(checkpoint, "var.safetensors", save({"x": torch.ones(1)}))
    assert "no class embedding" in refusal(restore, checkpoint)
