"""Every setting and every default, validated: the one schema of space files, exports and final runs.

A dotted name (``loss.lambda_1``) is the key of a space entry, the Optuna parameter, the MLflow parameter and the
command-line override alike. Sections are frozen and refuse unknown keys; `Config.with_values` returns a new object.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uvar_tune.config.space_entry import SpaceEntry
from uvar_tune.io.uri import redact_url

Positive = Annotated[int, Field(gt=0, le=10**15)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Size = Annotated[int, Field(gt=0, le=2**16)]
REFERENCES = ("uniform", "dataset", "semantic", "normal")
SAMPLERS = ("tpe", "gp", "qmc", "random", "nsga2", "grid")
PROFILE_AXES = ("cfg_scale", "temperature", "cfg_ramp")
PRUNERS = ("none", "median", "successive_halving")
LAMBDAS = ("loss.lambda_1", "loss.lambda_2")
SHARES = (1e-3, 0.3)  # what a searched share of the gradient may be: below it is nothing, above it rivals the CE
# Least and greatest values of the sampling settings; beyond them samples do not change, or float32 overflows.
SAMPLING_BOUNDS = {"cfg_scale": (0.0, 100.0), "cfg_ramp": (0.0, 100.0), "temperature": (1e-4, 100.0)}
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _bounded(name: str) -> Any:
    low, high = SAMPLING_BOUNDS[name]
    return Annotated[float, Field(ge=low, le=high)]


CfgScale, CfgRamp, Temperature = map(_bounded, SAMPLING_BOUNDS)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=False)


class Constraint(Section):
    """A bound on one score of a trial; trials beyond it are infeasible to the sampler and marked in the report."""

    max: float | None = None
    min: float | None = None
    max_above_baseline: float | None = None  # in the metric's unit, as is
    max_below_baseline: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self):
        if all(bound is None for bound in (self.max, self.min, self.max_above_baseline, self.max_below_baseline)):
            raise ValueError("a constraint needs max, min, max_above_baseline or max_below_baseline")
        return self

    @property
    def relative(self) -> bool:
        return self.max_above_baseline is not None or self.max_below_baseline is not None


class StudyConfig(Section):
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "study"
    question: str = ""
    seed: Seed = 0
    metric: str = "fid"  # what ranks the trials and chooses each checkpoint's CFG scale
    further_metrics: tuple[str, ...] = ()  # with them the search is for the Pareto front
    constraints: dict[str, Constraint] = {}
    trials: Annotated[int, Field(gt=0, le=10**6)] = 8  # the total, the baseline (trial 0) among them
    sampler: Literal[SAMPLERS] = "tpe"
    startup_trials: Positive = 8  # scrambled Sobol points before the sampler takes over
    pruner: Literal[PRUNERS] = "none"
    rungs: tuple[Positive, ...] = ()  # images at which a trial is scored and may be stopped
    rung_samples: Annotated[int, Field(ge=16)] = 500
    stop_metric: str | None = None  # which metric the rungs judge; needed where there are several
    noise_replicates: Annotated[int, Field(ge=2)] = 4  # training seeds of the baseline in the phase `noise`
    noise_samplings: Annotated[int, Field(ge=2)] = 3  # sampling seeds on which each of them is scored
    confirm_top: Positive = 2  # how many trials are confirmed
    confirm_replicates: Positive = 8  # fresh seeds of each arm in the phase `confirm`
    confirm_axes: tuple[Literal[PROFILE_AXES], ...] = (
        "cfg_scale",
        "temperature",
    )  # each arm at its own best point over these
    confirm_refinements: Annotated[int, Field(ge=0, le=32)] = 8
    max_gpu_hours: PositiveFloat | None = None
    max_wall_time: PositiveFloat | None = None  # hours during which trials ran

    @model_validator(mode="after")
    def _consistent(self):
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(
                f"study.further_metrics {list(self.further_metrics)} and study.metric "
                f"{self.metric!r} name a metric twice"
            )
        if (self.pruner == "none") != (not self.rungs):
            raise ValueError("study.pruner and study.rungs belong together: give both, or pruner 'none' and no rungs")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"study.rungs {list(self.rungs)} must grow strictly")
        if self.stop_metric is not None and self.stop_metric not in self.metrics:
            raise ValueError(f"study.stop_metric {self.stop_metric!r} is none of the metrics {list(self.metrics)}")
        if self.pruner != "none" and self.further_metrics and self.stop_metric is None:
            raise ValueError(
                f"study.pruner {self.pruner!r} with several metrics needs study.stop_metric, one of "
                f"{list(self.metrics)}"
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric, *self.further_metrics)

    @property
    def rung_metric(self) -> str:
        return self.stop_metric or self.metric


class DataConfig(Section):
    name: Literal["digits", "folder"] = "digits"
    path: str | None = None
    image_size: Size = 16
    classes: tuple[str, ...] | None = None
    on_corrupt: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _folder_has_a_path(self):
        if self.name == "folder" and not self.path:
            raise ValueError("data.name 'folder' needs data.path, a folder laid out as train|val/CLASS/IMAGE")
        return self


class TokenizerConfig(Section):
    path: str | None = None  # a trained or official VQ-VAE; without it, stage 1 trains one from the images
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 128
    code_dim: Size = 16
    channels: Size = 32
    channel_multipliers: tuple[Size, ...] = (1, 2, 4)
    scales: tuple[Size, ...] = (1, 2, 3, 4)
    quant_resi: Annotated[float, Field(ge=0, le=1)] = 0.5
    share_quant_resi: Annotated[int, Field(ge=0, le=256)] = 4
    beta: PositiveFloat = 0.25
    images: Positive = 32_000
    batch_size: Positive = 64
    learning_rate: PositiveFloat = 2e-3
    lpips_weight: Annotated[float, Field(ge=0)] = 0.0  # of LPIPS beside the squared error; its weights must be at hand
    lpips_network: Literal["vgg", "alex", "squeeze"] = "vgg"
    crops: Positive = 1

    @model_validator(mode="after")
    def _scales_grow(self):
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"tokenizer.scales {list(self.scales)} must grow strictly")
        if self.images % self.batch_size:
            raise ValueError(_divides("tokenizer.images", self.images, "tokenizer.batch_size", self.batch_size))
        return self


class ModelConfig(Section):
    depth: Annotated[int, Field(gt=0, le=256)] = 2
    width: Size | None = None  # 64·depth
    heads: Size | None = None  # depth
    shared_aln: bool = False
    attn_l2_norm: bool = True
    label_dropout: Fraction = 0.1
    drop_path: Fraction | None = None  # 0.1·depth/24

    @model_validator(mode="after")
    def _heads_divide(self):
        width, heads = self.width or 64 * self.depth, self.heads or self.depth
        if width % heads:
            raise ValueError(f"model.width {width} is not a multiple of model.heads {heads}")
        return self

    def resolved(self) -> ModelConfig:
        """This section with the official values in place of None."""
        return self.model_copy(
            update={
                "width": self.width or 64 * self.depth,
                "heads": self.heads or self.depth,
                "drop_path": 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path,
            }
        )


class LossConfig(Section):
    lambda_1: Annotated[float, Field(ge=0)] = 0.0
    lambda_2: Annotated[float, Field(ge=0, lt=1)] = 0.0  # from 1 on the minimiser is arbitrary (docs/method.md)
    lambda_unit: Literal["raw", "share"] = "raw"  # share: of the CE's gradient at the logits, measured on the baseline
    reference: Literal[REFERENCES] = "normal"
    dispersion: Literal["embedding", "probability"] = "embedding"
    discrepancy: Literal["wasserstein", "squared", "kl"] = "wasserstein"
    normalize: Literal["relative", "none"] = "relative"
    kl_smoothing: Annotated[float, Field(ge=0)] = 1e-2
    neighbours: Annotated[float, Field(gt=1)] = 8.0
    perplexity: Annotated[float, Field(gt=1)] = 2.0
    condition_on: Literal["scale", "class"] = "scale"
    distance: Literal["euclidean", "cosine"] = "euclidean"
    partition: Literal["kmeans", "agglomerative", "reconstruction"] = "kmeans"
    class_count: Annotated[int, Field(ge=2)] | None = None  # max(2, V/16)
    first_order: Literal["ce", "label_smoothing", "label_relaxation"] = "ce"
    epsilon: Fraction = 0.1
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _means_something(self):
        pointless = (self.reference, self.dispersion, self.discrepancy) == ("uniform", "probability", "kl")
        if self.lambda_1 > 0 and pointless:
            raise ValueError(
                "loss: 'kl' with reference 'uniform' and dispersion 'probability' divides by a "
                "reference variance of 0; take 'wasserstein' or 'squared'"
            )
        low, high = SHARES
        for name, value in (("lambda_1", self.lambda_1), ("lambda_2", self.lambda_2)):
            if self.lambda_unit == "share" and value and not low <= value <= high:
                raise ValueError(
                    f"loss.{name} {value:g} is a share of the gradient (loss.lambda_unit): 0, or "
                    f"from {low:g} to {high:g}"
                )
        return self

    @property
    def weights(self) -> tuple[float, float]:
        """λ1 and λ2."""
        return self.lambda_1, self.lambda_2

    def baseline(self) -> LossConfig:
        """The same loss without its terms: λ1 = λ2 = 0."""
        return self.model_copy(update={"lambda_1": 0.0, "lambda_2": 0.0, "lambda_unit": "raw"})


class TrainingConfig(Section):
    images: Positive = 32_000
    batch_size: Positive = 64  # global, over all workers
    learning_rate: PositiveFloat = 2e-3  # absolute, the peak
    schedule: Literal["lin0", "lin", "lin00", "cos", "exp"] = "lin0"
    warmup_images: Annotated[int, Field(ge=0)] = 640
    final_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip: PositiveFloat | None = 2.0
    accumulate: Positive = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    ema: Positive | None = None  # half-life in images of averaged weights, which are then what is scored
    activation_checkpointing: bool = False
    compile: bool = False
    fused: Literal["auto", "on", "off"] = "auto"  # the loss straight from the hidden states, never holding all logits
    init_from: str | None = None

    @model_validator(mode="after")
    def _divides(self):
        if self.images % self.batch_size:
            raise ValueError(_divides("training.images", self.images, "training.batch_size", self.batch_size))
        if self.batch_size % self.accumulate:
            raise ValueError(_divides("training.batch_size", self.batch_size, "training.accumulate", self.accumulate))
        if self.warmup_images >= self.images:
            raise ValueError(f"training.warmup_images {self.warmup_images} must be below training.images {self.images}")
        return self


class InferenceConfig(Section):
    search: Literal["per_checkpoint", "joint"] = "per_checkpoint"
    cfg_scale: CfgScale = 1.5
    search_cfg_scales: tuple[CfgScale, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    search_axes: tuple[Literal[PROFILE_AXES], ...] = ("cfg_scale",)  # and what else the space names in role inference
    search_refinements: Annotated[int, Field(ge=0, le=16)] = 2  # golden-section scores between the best of these
    temperature: Temperature = 1.0
    cfg_ramp: CfgRamp = 1.0  # power with which guidance grows over the scales; 0: the same at each
    top_k: Annotated[int, Field(ge=0, le=2**16)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _profile_holds_zero(self):
        points = self.search_cfg_scales
        if 0.0 not in points or len(points) < 2 or list(points) != sorted(set(points)):
            raise ValueError(
                f"inference.search_cfg_scales {list(points)} must ascend and hold 0 (guidance off) and one more"
            )
        return self


class EvaluationConfig(Section):
    samples: Annotated[int, Field(ge=16)] = 1000
    chunk: Positive = 100
    extractor: str = "inception-v3-compat"
    weights: str | None = None
    metrics: tuple[Literal["fid", "kid", "is", "precision", "recall"], ...] = (
        "fid",
        "kid",
        "is",
        "precision",
        "recall",
    )
    reference_split: Literal["train", "validation"] = "train"


class RunConfig(Section):
    root: str | None = None  # runs/, or inside a Ray job a fixed directory in the user's home
    storage: str | None = None  # any Optuna storage URL; the default is the journal file of the study
    workers: Positive = 1
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    max_concurrent: Positive | None = None  # as many trials as the cluster holds
    wait_resources_sec: PositiveFloat = 1800.0  # for an autoscaler to bring what one trial takes
    max_attempts: Positive = 3
    log_images: Positive | None = None  # about 200 points a trial
    checkpoint_images: Positive | None = None  # four checkpoints a trial
    checkpoint_bytes: Positive = 20 * 2**30  # a trial
    scratch: str | None = None


class Config(Section):
    study: StudyConfig = StudyConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()
    space: dict[str, SpaceEntry] = {}
    final: dict[str, Any] = {}  # dotted name → value of final runs, over what the study ran
    verdict: Literal["unconfirmed", "better", "not distinguishable", "worse"] | None = None
    provenance: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _workers_divide(self):
        training, run = self.training, self.run
        share = run.workers * training.accumulate
        if training.batch_size % share:
            raise ValueError(
                _divides("training.batch_size", training.batch_size, "run.workers·training.accumulate", share)
            )
        for key in ("log_images", "checkpoint_images"):
            value = getattr(run, key)
            if value is not None and value % training.batch_size:
                raise ValueError(_divides(f"run.{key}", value, "training.batch_size", training.batch_size))
        self._check_rungs()
        if self.tokenizer.path is None:
            reach = self.tokenizer.scales[-1] * 2 ** (len(self.tokenizer.channel_multipliers) - 1)
            if reach != self.data.image_size:
                raise ValueError(
                    f"data.image_size {self.data.image_size} differs from {reach}, the size that "
                    "tokenizer.scales and tokenizer.channel_multipliers make"
                )
        return self

    def _check_rungs(self) -> None:
        study, training = self.study, self.training
        for rung in study.rungs:
            if rung % training.batch_size:
                raise ValueError(_divides("study.rungs", rung, "training.batch_size", training.batch_size))
            if rung >= training.images:
                raise ValueError(f"study.rungs {rung} must be below training.images {training.images}")
        if study.rungs and study.rung_samples > self.evaluation.samples:
            raise ValueError(
                f"study.rung_samples {study.rung_samples} exceeds evaluation.samples {self.evaluation.samples}"
            )
        if study.max_gpu_hours is not None and not self.run.gpus_per_worker:
            raise ValueError(
                "study.max_gpu_hours is a budget of GPUs, and run.gpus_per_worker is 0; take study.max_wall_time"
            )
        lengths = [*study.rungs, training.images]
        ratios = {later / earlier for earlier, later in zip(lengths, lengths[1:], strict=False)}
        if study.pruner == "successive_halving" and (len(ratios) > 1 or min(ratios) < 2 or min(ratios) % 1):
            raise ValueError(
                f"study.rungs {list(study.rungs)} and training.images {training.images}: successive halving "
                "needs each to be the same whole multiple (2, 3, …) of the one before"
            )

    def get(self, dotted: str) -> Any:
        """The value at a dotted name, e.g. ``loss.lambda_1``."""
        section, key = dotted.split(".", 1)
        return getattr(getattr(self, section), key)

    def with_values(self, values: dict[str, Any]) -> Config:
        """A new, validated Config with the values of these dotted names replaced."""
        tree = self.model_dump()
        for dotted, value in values.items():
            section, key = dotted.split(".", 1)
            tree[section][key] = value
        return Config.model_validate(tree)

    def tree(self, *, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
        """Plain lists, numbers and strings, as YAML and JSON hold them; without the user and password of `run.storage`."""
        tree = self.model_dump(mode="json", exclude=set(exclude))
        if self.run.storage and "run" in tree:
            tree["run"]["storage"] = redact_url(self.run.storage)
        return tree


def dotted_names() -> list[str]:
    """Every dotted name that the schema knows, for messages and for the command line."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    return [
        f"{name}.{key}"
        for name, kind in sections.items()
        if isinstance(kind, type) and issubclass(kind, Section)
        for key in kind.model_fields
    ]


def _divides(what: str, value: int, by: str, unit: int) -> str:
    low = value // unit * unit
    return f"{what} {value} is not a multiple of {by} {unit}; the nearest: {f'{low} or {low + unit}' if low else unit}"
