"""Every key a configuration may have, with its type: a mistyped override fails at composition.

YAML carries scalars; these dataclasses say which. `scripts/cli.py` registers them with Hydra and
turns a composed configuration into them at the first line of every script, so nothing behind the
scripts knows Hydra. `RecipeConfig`, `VariantConfig` and `SamplerConfig` have the fields of the
checked, frozen dataclasses of the packages, in lists where those have tuples.
"""

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"  # OmegaConf's word for a value that must be given

# What some keys may hold, as the packages have it: refused here, before torch is imported.
CHOICES = {
    "format": ("w8a8", "comfy", "fp8", "nf4", "q8_0", "q4_k", "bf16"),  # quant.formats.table
    "engine": ("stock", "dit8"),  # models.engine.sampling
    "dtype": ("float32", "bfloat16", "float16"),  # models.pipeline
}


@dataclass
class PlantConfig:
    """How a model with planted outliers is derived; see quant/outliers.py."""

    source: str = MISSING  # folder of the natural model
    seed: int = 0
    fraction: float = 0.01
    factors: list[float] = field(default_factory=lambda: [8.0, 16.0, 32.0, 64.0])


@dataclass
class ModelConfig:
    """Where a model is and what it expects."""

    name: str = MISSING
    path: str = MISSING  # diffusers folder; relative to the repository
    reference: str = MISSING  # variant that the others are compared with
    calibration: str = MISSING  # prompt set
    prompts: str = MISSING  # prompt set evaluated by default
    scorers: list[str] = MISSING  # that scripts/evaluate.py runs by default
    size: int = MISSING  # pixels a side, a multiple of 16
    max_sequence_length: int = MISSING  # text tokens; captions are padded to it
    guidance: float = MISSING
    final_guidance: float = MISSING  # of the sampler's last `final_steps` steps
    companion_dtype: str = MISSING  # of text encoder and VAE
    expander: str = "template"  # that makes a caption of a sentence, see scripts/expand.py
    build_missing: bool = False  # build missing checkpoints on the way: only where it is cheap
    plant: PlantConfig | None = None


@dataclass
class VariantConfig:
    """How the weights are stored and multiplied."""

    name: str = MISSING
    format: str = MISSING  # source: as the model is on disk; rounded; or a file format
    gemm: str | None = None  # int8 formats only: fake_quant or fused
    bits: int | None = None  # rounded only


@dataclass
class RecipeConfig:
    """See quant.types.Recipe."""

    name: str = MISSING
    alpha: float | None = 0.5
    alpha_grid: list[float] = field(default_factory=list)
    smoothing_carrier: str = "folded"
    rotation: int = 0
    activation_scale: str = "token"
    protect: Any = "half"  # "half" or a count; Recipe checks it, OmegaConf cannot merge unions
    keep: list[str] = field(default_factory=list)
    quantize_text: bool = True
    quantize_rest: bool = False
    method: str = "rule"
    latency: float = 1.0


@dataclass
class SamplerConfig:
    """A preset of the sampler; the sigmas are the pipeline's own."""

    name: str = MISSING
    steps: int = MISSING
    final_steps: int = MISSING
    mu: float = MISSING
    std: float = MISSING


@dataclass
class HardwareConfig:
    """What runs the model."""

    name: str = MISSING
    device: str = MISSING  # auto, cpu or cuda
    batch: int = 1
    # text encoder, branches and VAE visit the device when they are needed; engine=stock, which
    # draws with all of them there, is refused
    staged: bool = False
    # processes that draw in scripts/evaluate.py, one a GPU, prompts split; each loads the model, so
    # main memory for as many copies of the weights. Other scripts refuse more than one.
    devices: int = 1


@dataclass
class CalibrationConfig:
    """How activation statistics are taken, whatever is done with them later."""

    prompts: str | None = None  # prompt set; default: the model's
    n: int | None = None  # of its first prompts
    dtype: str = "float32"
    samples: int = 256  # rows of every activation kept for recipes that compare output errors
    sampler: SamplerConfig = MISSING


@dataclass
class CalibrateConfig:
    """scripts/calibrate.py"""

    model: ModelConfig = MISSING
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    hardware: HardwareConfig = MISSING
    checkpoints: str = "checkpoints"


@dataclass
class ConvertConfig(CalibrateConfig):
    """What decides a checkpoint besides its format."""

    recipe: RecipeConfig = MISSING
    # safetensors merged into the weights before they are quantized; calibration runs without it
    lora: str | None = None
    lora_scale: float = 1.0
    latency: str = "conf/latency/h200.csv"  # modelled times of a GPU, for recipe=auto


@dataclass
class QuantizeConfig(ConvertConfig):
    """scripts/quantize.py"""

    format: str = "w8a8"  # see quant/formats/table.py
    release: bool = False  # also lay out a folder as one would publish it


@dataclass
class DrawConfig(ConvertConfig):
    """What decides a picture besides model and recipe."""

    variant: VariantConfig = MISSING
    sampler: SamplerConfig = MISSING
    # stock: the pipeline's own forward; dit8: models/engine, the same pictures up to rounding,
    # faster and in less memory
    engine: str = "stock"
    dtype: str = "float32"  # compute dtype of the two branches
    steps: int | None = None  # instead of the sampler's
    guidance: float | None = None  # instead of the model's, at every step
    size: int | None = None  # instead of the model's


@dataclass
class GenerateConfig(DrawConfig):
    """scripts/generate.py"""

    seed: int = 0
    out: str = "poster.png"  # the caption is written beside it, as poster.json
    # Captions of a calibration that this script makes on the way, unless calibration.n says how
    # many. A checkpoint of the full calibration is taken where there is one.
    quick_calibration: int = 4


@dataclass
class EvaluateConfig(DrawConfig):
    """scripts/evaluate.py"""

    prompts: str | None = None  # name of a file in prompts/, or a path; default: the model's
    n: int | None = None  # of its first prompts
    batch: int | None = None  # instead of the hardware's
    # "0/4": only draw the first quarter of the batches; without shard the same command finishes
    shard: str | None = None
    # json: captions as they are; raw: plain sentences in their place, see eval/prompt_style.py
    prompt_style: str = "json"
    scorers: list[str] = field(default_factory=list)
    # what text-image scores compare a picture with, see eval/score_text.py; default: the scorer's
    # own, which is idea but for clip_mini
    score_text: str | None = None
    # see eval/score.py, for example +scorer_options.hpsv2.checkpoint=FILE
    scorer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: str = "outputs/results"  # the ledger; results=results: the committed one
    out: str = "outputs/runs"  # the pictures
    archive: bool = False  # pack the pictures of the run into one .tar
    readers: int = 1  # processes that read text
    overwrite: bool = False  # replace rows of the ledger that differ
    report: bool = True  # make an HTML page of all runs that share the reference


@dataclass
class FragilityConfig(CalibrateConfig):
    """scripts/fragility.py"""

    n: int = 2  # of the first calibration prompts; two make the two halves of the stability
    size: int | None = None  # instead of the model's
    latents: bool = True  # also generate to the end with each linear: two thirds of the time
    random: bool = False  # random weights in place of the model's; then the following count
    full: bool = True  # the real widths, otherwise a toy's
    layers: int = 34
    image_tokens: int = 256
    text_tokens: int = 64
    results: str = "outputs/results/fragility"  # the committed ones: results/fragility
    state: str = "outputs/fragility"


@dataclass
class PoolConfig:
    """Posters drawn before training, by tier."""

    slot: int = MISSING
    easy: int = MISSING
    medium: int = MISSING
    hard: int = MISSING


@dataclass
class VaeConfig:
    """Training of the VAE."""

    seconds: float = MISSING
    batch: int = MISSING
    lr: float = MISSING


@dataclass
class BranchConfig:
    """Training of one branch."""

    seconds: float = MISSING  # of training; drawing, compiling and evaluating come on top
    batch: int = MISSING
    lr: float = MISSING
    cool_down: float = MISSING  # last part of the schedule, in which the rate falls to 1 %
    every_seconds: float = MISSING  # between two evaluations


@dataclass
class TrainMiniConfig:
    """scripts/train_mini.py"""

    size: str = "full"  # full or toy
    seed: int = 0
    out: str = "outputs/train_mini"
    curves: str | None = None  # folder of loss.csv and ocr.csv; default: out
    device: str = "auto"
    stop_after: str = "done"  # vae, conditional, unconditional or done
    pool: PoolConfig = MISSING
    workers: int = MISSING  # drawing processes
    readers: int = MISSING  # OCR processes beside training; 0: no OCR curve
    probe: int = MISSING  # held-out posters a tier for the OCR curve
    probe_steps: int = MISSING
    vae: VaeConfig = MISSING
    conditional: BranchConfig = MISSING
    unconditional: BranchConfig = MISSING


# name of a configuration in conf/ and of its script -> what it holds
SCHEMAS = {
    "calibrate": CalibrateConfig,
    "quantize": QuantizeConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "fragility": FragilityConfig,
    "train_mini": TrainMiniConfig,
}
