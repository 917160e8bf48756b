"""Every setting with its default, validated: the one schema of space files, exports and final runs.

A dotted name (``loss.lambda_1``) is the key of a space entry, the Optuna parameter, the MLflow parameter and the
command-line override. Sections are frozen and reject unknown keys; `Config.with_values` returns a new object. The
docstring below a field is its description in ``model_fields``, from which a reference of all settings can be generated.
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
SEARCH_AXES = ("cfg_scale", "temperature", "cfg_ramp")
PRUNERS = ("none", "median", "successive_halving")
IMAGE_FORMATS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "jfif", "gif", "avif", "jp2", "none")
LAMBDAS = ("loss.lambda_1", "loss.lambda_2")
SHARE_BOUNDS = (1e-3, 0.3)  # shares of the gradient: negligible below, rivalling the cross-entropy above
# Bounds of the sampling settings; beyond them samples do not change, or float32 overflows.
SAMPLING_BOUNDS = {"cfg_scale": (0.0, 100.0), "cfg_ramp": (0.0, 100.0), "temperature": (1e-4, 100.0)}
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _bounded(name: str) -> Any:
    low, high = SAMPLING_BOUNDS[name]
    return Annotated[float, Field(ge=low, le=high)]


CfgScale, CfgRamp, Temperature = map(_bounded, SAMPLING_BOUNDS)


class Section(BaseModel):
    """A frozen group of settings that rejects unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=False,
        use_attribute_docstrings=True,
    )


class Constraint(Section):
    """A bound on one score of a trial. Trials beyond it are infeasible to the sampler and marked in the report."""

    max: float | None = None
    """Upper bound."""
    min: float | None = None
    """Lower bound."""
    max_above_baseline: float | None = None
    """Upper bound on the difference to the baseline, in the unit of the metric."""
    max_below_baseline: float | None = None
    """Upper bound on how far the score may fall below the baseline, in the unit of the metric."""

    @model_validator(mode="after")
    def _bounds_something(self):
        if all(bound is None for bound in (self.max, self.min, self.max_above_baseline, self.max_below_baseline)):
            raise ValueError("a constraint needs max, min, max_above_baseline or max_below_baseline")
        return self

    @property
    def relative(self) -> bool:
        """Whether the bound depends on the baseline's score."""
        return self.max_above_baseline is not None or self.max_below_baseline is not None


class StudyConfig(Section):
    """The question, the metric, the budget and the sampler of a study."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "study"
    """Name of the study, unique below ``run.root``; the same name resumes it."""
    question: str = ""
    """The question that the study answers, for the report."""
    seed: Seed = 0
    """Seed from which all others are derived."""
    metric: str = "fid"
    """Metric that ranks the trials and selects the CFG scale of each checkpoint."""
    further_metrics: tuple[str, ...] = ()
    """Further metrics to optimise; with them the search is for the Pareto front."""
    constraints: dict[str, Constraint] = {}
    """Bounds on scores, by metric."""
    trials: Annotated[int, Field(gt=0, le=10**6)] = 8
    """Total number of trials, including the baseline (trial 0)."""
    sampler: Literal[SAMPLERS] = "tpe"
    """Sampler of the search after the start-up trials."""
    startup_trials: Positive = 8
    """Scrambled Sobol points before the sampler takes over."""
    pruner: Literal[PRUNERS] = "none"
    """Rule that stops trials early, at the rungs."""
    rungs: tuple[Positive, ...] = ()
    """Training images at which a trial is scored and may be stopped."""
    rung_samples: Annotated[int, Field(ge=16)] = 500
    """Generated images of a score at a rung."""
    rung_metric: str | None = None
    """Metric scored at the rungs (default: ``study.metric``); required with ``study.further_metrics``."""
    noise_replicates: Annotated[int, Field(ge=2)] = 4
    """Training seeds of the baseline in phase noise."""
    noise_samplings: Annotated[int, Field(ge=2)] = 3
    """Sampling seeds on which each of them is scored."""
    confirm_top: Positive = 2
    """Number of trials to confirm."""
    confirm_replicates: Positive = 12
    """Maximum number of fresh training seeds of each arm in the phase `confirm`; arms stop earlier if they can."""
    confirm_axes: tuple[Literal[SEARCH_AXES], ...] = ("cfg_scale", "temperature")
    """Inference parameters at whose best point each arm is compared."""
    confirm_refinements: Annotated[int, Field(ge=0, le=32)] = 8
    """Golden-section scores per arm in phase confirm."""
    max_gpu_hours: PositiveFloat | None = None
    """GPU hours after which no further trial starts."""
    max_wall_time: PositiveFloat | None = None
    """Hours with running trials after which no further trial starts."""
    queue: tuple[dict[str, Any], ...] = ()
    """Parameters of trials to run before the sampler's; parameters that they leave out are sampled."""
    warm_start: str | None = None
    """A study below the same root, or STORAGE_URL#NAME, whose completed trials inform the sampler."""

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
        if self.rung_metric is not None and self.rung_metric not in self.metrics:
            raise ValueError(f"study.rung_metric {self.rung_metric!r} is none of the metrics {list(self.metrics)}")
        if self.pruner != "none" and self.further_metrics and self.rung_metric is None:
            raise ValueError(
                f"study.pruner {self.pruner!r} with several metrics needs study.rung_metric, one of "
                f"{list(self.metrics)}"
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics to optimise, ``study.metric`` first."""
        return (self.metric, *self.further_metrics)

    @property
    def pruning_metric(self) -> str:
        """The metric that is scored at the rungs."""
        return self.rung_metric or self.metric


class DataConfig(Section):
    """The images."""

    name: Literal["digits", "folder"] = "digits"
    """The built-in handwritten digits, or a folder of images."""
    path: str | None = None
    """Folder laid out as train|val/CLASS/IMAGE."""
    image_size: Size = 16
    """Side of an image in pixels."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to use (default: all)."""
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    """Whether an unreadable image ends the command or is left out."""
    nested: bool = False
    """Whether the subfolders of a class are read too."""
    formats: tuple[Literal[IMAGE_FORMATS], ...] = IMAGE_FORMATS[:9]
    """File extensions to read; none: files without an extension."""

    @model_validator(mode="after")
    def _folder_has_a_path(self):
        if self.name == "folder" and not self.path:
            raise ValueError("data.name 'folder' needs data.path, a folder laid out as train|val/CLASS/IMAGE")
        return self


class TokenizerConfig(Section):
    """The multi-scale VQ-VAE: a given one, or the settings of stage 1, which trains it."""

    path: str | None = None
    """A trained or official VQ-VAE; without it, stage 1 trains one from the images."""
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 128
    """Number of codes V."""
    code_dim: Size = 16
    """Dimension of a code."""
    channels: Size = 32
    """Base width of encoder and decoder."""
    channel_multipliers: tuple[Size, ...] = (1, 2, 4)
    """Width multiplier of each resolution; each but the first halves the resolution."""
    scales: tuple[Size, ...] = (1, 2, 3, 4)
    """Side of the token map of each scale."""
    quant_resi: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Ratio of the residual convolution of the quantizer."""
    share_quant_resi: Annotated[int, Field(ge=0, le=256)] = 4
    """Residual convolutions of the quantizer, spread over the scales; 0: one per scale, 1: one for all."""
    beta: PositiveFloat = 0.25
    """Weight of the commitment loss (β)."""
    images: Positive = 32_000
    """Training images."""
    batch_size: Positive = 64
    """Global batch size."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate of AdamW."""
    lpips_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of LPIPS in addition to the squared error; its weights must be available locally."""
    lpips_network: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network of LPIPS."""
    crops: Positive = 1
    """Crops per image in the token cache: 1 is the centre crop, more are random crops."""

    @model_validator(mode="after")
    def _scales_grow(self):
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"tokenizer.scales {list(self.scales)} must grow strictly")
        if self.images % self.batch_size:
            raise ValueError(_divides("tokenizer.images", self.images, "tokenizer.batch_size", self.batch_size))
        return self


class ModelConfig(Section):
    """The VAR transformer."""

    depth: Annotated[int, Field(gt=0, le=256)] = 2
    """Number of blocks."""
    width: Size | None = None
    """Embedding dimension (default: 64·depth)."""
    heads: Size | None = None
    """Attention heads (default: depth)."""
    shared_aln: bool = False
    """Share the adaptive layer norm over all blocks."""
    attn_l2_norm: bool = True
    """Normalise queries and keys."""
    label_dropout: Fraction = 0.1
    """Probability of an unconditional training label, for classifier-free guidance."""
    drop_path: Fraction | None = None
    """Stochastic depth (default: 0.1·depth/24)."""

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
    """The loss L = L_CE + λ1·L_2nd + λ2·L_SE (docs/method.md)."""

    lambda_1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the second-order term L_2nd."""
    lambda_2: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the semantic entropy L_SE; from 1 on the minimiser is arbitrary (docs/method.md)."""
    lambda_unit: Literal["raw", "share"] = "raw"
    """Unit of λ1 and λ2: raw, or share of the cross-entropy's gradient at the logits, measured on the baseline."""
    reference: Literal[REFERENCES] = "normal"
    """Reference dispersion that L_2nd compares with."""
    dispersion: Literal["embedding", "probability"] = "embedding"
    """Dispersion of a token distribution: in code space, or of the probabilities."""
    discrepancy: Literal["wasserstein", "squared", "kl"] = "wasserstein"
    """Distance between dispersion and reference."""
    normalize: Literal["relative", "none"] = "relative"
    """relative: dispersions in units of the anchor, the dispersion of the code histogram; none: as they are."""
    kl_smoothing: Annotated[float, Field(ge=0)] = 1e-2
    """Fraction of the reference added to both dispersions in discrepancy kl."""
    neighbours: Annotated[float, Field(gt=1)] = 8.0
    """Perplexity of each code's kernel in reference semantic."""
    perplexity: Annotated[float, Field(gt=1)] = 2.0
    """Mean perplexity of the kernels in reference normal."""
    condition_on: Literal["scale", "class"] = "scale"
    """class: condition the histograms of reference dataset on the label, too."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance between codes in the kernels (Eq. 7)."""
    partition: Literal["kmeans", "agglomerative", "reconstruction"] = "kmeans"
    """Method that groups codes into semantic classes."""
    class_count: Annotated[int, Field(ge=2)] | None = None
    """Number of semantic classes (default: max(2, V/16))."""
    first_order: Literal["ce", "label_smoothing", "label_relaxation"] = "ce"
    """First-order loss."""
    epsilon: Fraction = 0.1
    """Smoothing of label_smoothing."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Relaxation of label_relaxation."""

    @model_validator(mode="after")
    def _means_something(self):
        pointless = (self.reference, self.dispersion, self.discrepancy) == ("uniform", "probability", "kl")
        if self.lambda_1 > 0 and pointless:
            raise ValueError(
                "loss: 'kl' with reference 'uniform' and dispersion 'probability' divides by a "
                "reference variance of 0; take 'wasserstein' or 'squared'"
            )
        low, high = SHARE_BOUNDS
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
    """Training of the VAR (stage 2)."""

    images: Positive = 32_000
    """Training images."""
    batch_size: Positive = 64
    """Global batch size, over all workers."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, absolute."""
    schedule: Literal["lin0", "lin", "lin00", "cos", "exp"] = "lin0"
    """Learning-rate schedule after the warm-up."""
    warmup_images: Annotated[int, Field(ge=0)] = 640
    """Images of linear warm-up."""
    final_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Ratio of the final to the peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Betas of AdamW."""
    clip: PositiveFloat | None = 2.0
    """Norm to which gradients are clipped; null: no clipping."""
    accumulate: Positive = 1
    """Gradient accumulation steps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    ema: Positive | None = None
    """Half-life in images of averaged weights, which are then scored; null: none."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile the transformer blocks for training (`torch.compile`); scoring is not compiled."""
    fused: Literal["auto", "on", "off"] = "auto"
    """Compute the loss directly from the hidden states, without holding all logits."""
    init_from: str | None = None
    """Checkpoint or official VAR file from which training starts."""

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
    """Sampling, and the search for the inference point of a checkpoint."""

    search: Literal["per_checkpoint", "joint"] = "per_checkpoint"
    """per_checkpoint: search the inference point of each checkpoint; joint: as parameters of the trial."""
    cfg_scale: CfgScale = 1.5
    """Guidance at the last scale; 0: off."""
    search_cfg_scales: tuple[CfgScale, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """CFG scales at which each checkpoint is scored."""
    search_axes: tuple[Literal[SEARCH_AXES], ...] = ("cfg_scale",)
    """Parameters that are searched for each checkpoint, in addition to those of role inference in the space."""
    search_refinements: Annotated[int, Field(ge=0, le=16)] = 2
    """Golden-section scores around the best of these."""
    temperature: Temperature = 1.0
    """Divisor of the logits."""
    cfg_ramp: CfgRamp = 1.0
    """Exponent with which guidance grows over the scales; 0: the same at each scale."""
    top_k: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Sample from the k most probable codes; 0: off."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample from the most probable codes of mass p; 0: off."""

    @property
    def searches_guidance(self) -> bool:
        """Whether each checkpoint is scored at several CFG scales."""
        return self.search == "per_checkpoint" and "cfg_scale" in self.search_axes

    @model_validator(mode="after")
    def _profile_holds_zero(self):
        points = self.search_cfg_scales
        if 0.0 not in points or len(points) < 2 or list(points) != sorted(set(points)):
            raise ValueError(
                f"inference.search_cfg_scales {list(points)} must ascend and hold 0 (guidance off) and one more"
            )
        return self


class EvaluationConfig(Section):
    """Scoring."""

    samples: Annotated[int, Field(ge=16)] = 1000
    """Generated images of a score."""
    chunk: Positive = 100
    """Images sampled at once."""
    extractor: str = "inception-v3-compat"
    """Feature network."""
    weights: str | None = None
    """File with the feature network's weights (default: its own download or training)."""
    metrics: tuple[Literal["fid", "kid", "is", "precision", "recall"], ...] = (
        "fid",
        "kid",
        "is",
        "precision",
        "recall",
    )
    """Metrics to compute."""
    reference_split: Literal["train", "validation"] = "train"
    """Images to compare with."""


class RunConfig(Section):
    """Where and on what a study runs; may change when it is resumed."""

    root: str | None = None
    """Directory of studies and caches (default: runs, in a Ray job ~/uvar_tune_runs)."""
    storage: str | None = None
    """Optuna storage URL (default: the study's journal file)."""
    workers: Positive = 1
    """DDP workers per trial."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs reserved per worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs reserved per worker."""
    max_concurrent: Positive | None = None
    """Trials that run at once (default: as many as fit the cluster)."""
    wait_resources_sec: PositiveFloat = 1800.0
    """Seconds to wait for an autoscaler to provide the resources of one trial."""
    max_attempts: Positive = 3
    """Attempts of a trial before it fails."""
    log_images: Positive | None = None
    """Images between two points of the curves (default: about 200 points per trial)."""
    checkpoint_images: Positive | None = None
    """Images between two checkpoints (default: four checkpoints per trial)."""
    checkpoint_bytes: Positive = 20 * 2**30
    """Disk space for the checkpoints of one trial."""
    scratch: str | None = None
    """Node-local directory to which token caches are copied."""


class Config(Section):
    """The whole configuration of a study or a final run."""

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
    """Search space: dotted name → entry."""
    final: dict[str, Any] = {}
    """Settings of final runs that replace those of the study: dotted name → value."""
    verdict: Literal["unconfirmed", "better", "not distinguishable", "worse"] | None = None
    """Verdict of an export."""
    provenance: dict[str, Any] | None = None
    """Origin of an export: study, trial, seeds, scores, versions."""

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
        self._check_guidance()
        if self.tokenizer.path is None:
            reach = self.tokenizer.scales[-1] * 2 ** (len(self.tokenizer.channel_multipliers) - 1)
            if reach != self.data.image_size:
                raise ValueError(
                    f"data.image_size {self.data.image_size} differs from {reach}, the size that "
                    "tokenizer.scales and tokenizer.channel_multipliers make"
                )
        return self

    def _check_guidance(self) -> None:
        """Classifier-free guidance needs a network that was also trained without labels (Ho & Salimans 2022)."""
        if self.model.label_dropout > 0:
            return
        inference, study = self.inference, self.study
        guided = {
            "inference.search 'per_checkpoint' scores CFG scales": inference.searches_guidance,
            f"inference.cfg_scale {inference.cfg_scale:g} is above 0": inference.cfg_scale > 0,
            "study.confirm_axes holds cfg_scale": "cfg_scale" in study.confirm_axes,
        }
        if reason := next((reason for reason, holds in guided.items() if holds), None):
            raise ValueError(
                f"model.label_dropout 0 trains no unconditional predictions, which guidance needs, and {reason}; take "
                "model.label_dropout 0.1, or inference.search 'joint', inference.cfg_scale 0 and study.confirm_axes "
                "without cfg_scale"
            )

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
        """Plain lists, numbers and strings for YAML and JSON, without credentials of storage URLs.

        Args:
            exclude: sections to leave out.
        """
        tree = self.model_dump(mode="json", exclude=set(exclude))
        if self.run.storage and "run" in tree:
            tree["run"]["storage"] = redact_url(self.run.storage)
        if self.study.warm_start and "study" in tree:
            tree["study"]["warm_start"] = redact_url(self.study.warm_start)
        return tree


def dotted_names() -> list[str]:
    """The dotted names of all settings."""
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
