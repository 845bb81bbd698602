"""One whole generation with the card's memory capped: does a 24 GB card hold both int8 branches?

Text encoder, both branches and VAE have the real sizes and random weights: Qwen3-VL-8B without its
output layer (8.15 G parameters, 16.3 GB in bf16), the two branches in int8 with 17 + 17 protected
down-projections, AutoencoderKLFlux2 as the pipeline ships it. Only the words are missing: random
token ids instead of a tokenizer. They go through the code that draws pictures on such a card,
`models.engine.sampling.Engine(staged=True)`: the encoder leaves before the branches come, both
branches stay through all steps and leave before the VAE decodes.

The cap binds PyTorch's allocator, so what the driver takes beside it is subtracted first: all used
memory less what others used before and less what the allocator holds. It is measured again at the
end, when all kernels are loaded and all graphs instantiated, and that is what is reported:

    peak = max_memory_reserved + context at the end
"""

import subprocess
import time
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Ideogram4Pipeline
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLModel

from dit8.models.engine.sampling import Engine
from dit8.models.mini import TOY, build_pipeline
from dit8.models.random_ideogram4 import build_random
from dit8.models.types import Prompt
from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.errors import UserError
from dit8.scripts.model_paths import MarkingScheduler, Tokens, sampler_at
from dit8.scripts.random_variants import make_branches

VARIANT = "fused_int8"
TEXT_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}


def build_text_encoder(device: torch.device) -> nn.Module:
    """Build Qwen3-VL-8B's body, vision tower included, with random bf16 weights."""
    config = Qwen3VLConfig(text_config=TEXT_8B, vision_config={"out_hidden_size": 4096})
    return _build(lambda: Qwen3VLModel(config), device)


def build_vae(device: torch.device) -> nn.Module:
    """Build the VAE of diffusers' default configuration, random bf16 weights."""
    return _build(AutoencoderKLFlux2, device)


def _build(make, device: torch.device) -> nn.Module:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def build_at_home(
    device: torch.device, layers: int, tokens: int, *, full: bool
) -> Ideogram4Pipeline:
    """Make the pipeline in main memory; weights are drawn and quantized on the device.

    Args:
        device: with room for both bf16 branches and both int8 ones: 58 GB if full.
        layers: blocks a branch, if full.
        tokens: of every caption.
        full: the real sizes; otherwise the toy of models.mini.
    """
    torch.manual_seed(0)
    if not full:
        pipeline = build_pipeline(TOY, seed=0)
        source = {branch: getattr(pipeline, name) for branch, name in BRANCHES.items()}
        encoder, vae = pipeline.text_encoder, pipeline.vae
    else:
        encoder = build_text_encoder(device).to("cpu")
        vae = build_vae(device).to("cpu")
        source = build_random(layers, full=True, dtype=torch.bfloat16, device=device, seed=0)
    branches = make_branches(VARIANT, source)
    del source
    return Ideogram4Pipeline(
        scheduler=MarkingScheduler(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=Tokens(tokens),
        **{name: branches[branch].to("cpu") for branch, name in BRANCHES.items()},
    )


class Gauge:
    """Read a device's memory: PyTorch's allocator, and what the driver has taken beside it.

    Args:
        device: to read.
        others_bytes: used before this process touched the device.
    """

    def __init__(self, device: torch.device, others_bytes: int) -> None:
        self.device, self._others = device, others_bytes
        self.peaks: dict[str, int] = {}

    @property
    def total_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[1]

    def context_bytes(self) -> int:
        """Return what the driver holds for this process: context, kernels, graphs."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - torch.cuda.memory_reserved(self.device) - self._others

    def begin(self) -> None:
        """Start a stage."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def end(self, stage: str) -> None:
        """Note the stage's peak and start the next."""
        self.peaks[stage] = torch.cuda.max_memory_reserved(self.device)
        self.begin()


def used_bytes() -> int:
    """Ask the driver how much of GPU 0 is used, without touching it.

    Raises:
        UserError: nvidia-smi does not answer.
    """
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return int(done.stdout.strip()) << 20
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(
            f"a cap needs nvidia-smi to tell the memory used before, got {type(error).__name__}; "
            "put it on the path"
        ) from error


def share_of(cap_bytes: float, context_bytes: int, total_bytes: int) -> float:
    """Return the share of a card's memory that the allocator may take under a cap.

    Raises:
        UserError: nothing would be left, or the card is smaller than the cap.
    """
    if not context_bytes < cap_bytes <= total_bytes:
        raise UserError(
            f"cap-gb must lie between the context's {context_bytes / 1e9:.2f} GB and the card's "
            f"{total_bytes / 1e9:.2f} GB, got {cap_bytes / 1e9:g}; correct it"
        )
    return (cap_bytes - context_bytes) / total_bytes


def generate_capped(
    gauge: Gauge, layers: int, tokens: int, size_px: int, steps: int, cap_gb: float, *, full: bool
) -> dict[str, Any]:
    """Draw one picture under a cap.

    Args:
        gauge: of the CUDA device.
        layers, tokens, full: see `build_at_home`.
        size_px: of a side.
        steps: denoising steps.
        cap_gb: decimal GB, CUDA's context included.

    Returns:
        peak_bytes_capped, whether it is within the cap, the peak of every stage and its parts.

    Raises:
        UserError: a stage does not fit, or the latents are not finite.
    """
    device = gauge.device
    engine = Engine(build_at_home(device, layers, tokens, full=full), device, staged=True)
    torch.cuda.empty_cache()
    _load_libraries(device)
    context = gauge.context_bytes()
    share = share_of(cap_gb * 1e9, context, gauge.total_bytes)
    # by number: unlike its neighbours it takes no device without one, and None is the current one
    torch.cuda.set_per_process_memory_fraction(share, device.index)
    gauge.begin()
    try:
        found = draw(engine, size_px, steps, gauge)
    except (torch.OutOfMemoryError, UserError) as error:
        if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
            raise  # another mistake
        stages = ", ".join(gauge.peaks) or "none"
        raise UserError(
            f"the generation must fit into {cap_gb:g} GB, got out of memory after the stages "
            f"{stages}; raise --cap-gb or lower --resolutions"
        ) from error
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)
    after = gauge.context_bytes()
    peak = max(gauge.peaks.values()) + after
    return found | {
        "peak_bytes_capped": peak,
        "fits": peak <= cap_gb * 1e9,
        "cap_gb": cap_gb,
        "stage_bytes": gauge.peaks,
        "context_bytes": {"before": context, "after": after},
    }


def draw(engine: Engine, size_px: int, steps: int, gauge: Any) -> dict[str, Any]:
    """Draw the picture; the gauge is read after the encoder, after the last step, at the end."""
    pipeline = engine.pipeline
    sampler = sampler_at(size_px, steps, pipeline.tokenizer.count)
    encode, left = pipeline.encode_prompt, iter(range(steps, 0, -1))

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        result = encode(*args, **kwargs)
        gauge.end("text encoder")
        return result

    def after_step() -> None:
        if next(left) == 1:
            gauge.end("denoising")

    pipeline.encode_prompt, pipeline.scheduler.mark = encode_prompt, after_step
    start = time.perf_counter()
    prompt = Prompt("random-0", "{}", (), 0)
    images, latents = engine.denoise([prompt], sampler, decode=True)
    seconds = time.perf_counter() - start
    gauge.end("decoding")
    if not bool(torch.isfinite(latents).all()):
        raise UserError("the capped generation must give finite latents, got NaN or infinity")
    return {"size_px": images[0].size[0], "steps": steps, "seconds": round(seconds, 2)}


def _load_libraries(device: torch.device) -> None:
    """Make cuBLAS load itself, so that the context has most of its size when it is measured."""
    x = torch.zeros(256, 256, dtype=torch.bfloat16, device=device)
    (x @ x).sum().item()
