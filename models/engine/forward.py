"""The forward of one Ideogram 4 branch without its waste; every weight format runs through it.

What the stock forward does and this one leaves out: padding the text to 2048 rows (only the rows
that exist are here), the attention mask of a single segment (all true), the text projection in
every step (once an image; never in the unconditional branch), 34 adaLN products in every step and
the rotary tables (made once), q, k and v as three products and w1 and w3 as two. What it adds
between the products is fused: norm, modulation and quantization; gate, residual and the next norm;
q/k norm and rotation; silu, product and quantization (`kernels`).

Rows are packed: [text | image] of each sample, one after the other, without padding. Every product
and norm sees all rows; attention runs within a sample.

The result is that of the stock forward: equal up to the order of sums in fp32. In bf16 it is
rounded in fewer places, so it lies nearer to the fp32 result than the stock forward does.

On CUDA a forward is one graph: of 34 blocks it is some 350 kernels, ten a block, which started one
by one from Python keep the GPU waiting at small sizes. A graph replays them at the addresses they
were captured with, so inputs are copied into fixed tensors, and nothing in between may wait for the
GPU. All graphs of a GPU draw their temporary memory from one pool. They may, because they run one
after the other and what a graph returns lies outside of it: the second branch then costs no memory.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F

from dit8.kernels.backend import backend_name
from dit8.models.engine.attention import check_backend, choose_attention
from dit8.models.engine.block import Block, run_blocks
from dit8.models.engine.lookup import Modulation, positions, rotary, tabulate_modulation
from dit8.models.memory import enough_memory
from dit8.quant.errors import UserError

# graph -> its device, as long as somebody keeps the graph
_devices: "weakref.WeakKeyDictionary[torch.cuda.CUDAGraph, torch.device]" = (
    weakref.WeakKeyDictionary()
)
_streams: dict[torch.device, torch.cuda.Stream] = {}


def capture(run: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Run once as a warm-up, then capture.

    The warm-up compiles and tunes the Triton kernels and lets cuBLAS and cuDNN allocate, none of
    which is possible during a capture. It runs on the stream of the capture: their workspaces
    belong to a stream.

    Args:
        run: reads and writes tensors that stay where they are, and returns nothing.
        device: a CUDA device.

    Returns:
        the graph; `replay()` runs it on the current stream.

    Raises:
        torch.OutOfMemoryError: in the warm-up or the capture.
    """
    with torch.cuda.device(device):
        stream, caller = _stream(device), torch.cuda.current_stream()
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            run()
        caller.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # torch.cuda.graph gives the warm-up's memory back to the driver before it captures
            with torch.cuda.graph(graph, pool=_pool(device), stream=stream):
                run()
        except RuntimeError as error:
            torch.cuda.set_stream(caller)  # torch.cuda.graph leaves its own when its end fails
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from error  # why the capture could not be ended
            raise
    _devices[graph] = device
    return graph


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _pool(device: torch.device) -> tuple[int, int] | None:
    """Return the memory pool of a graph that is alive: a pool dies with its last graph."""
    return next((graph.pool() for graph, place in _devices.items() if place == device), None)


LAYOUTS_KEPT = 2  # captions alternate between few lengths at most; each graph takes memory
TEXT_ROW, IMAGE_ROW = 0, 1  # of embed_image_indicator
STAGED = "use hardware=cuda_24gb"

Key = tuple[tuple[int, ...], tuple[int, int]]


@dataclass
class Layout:
    """The fixed tensors of one packing; a graph keeps reading and writing these."""

    text_lengths: tuple[int, ...]
    cos: torch.Tensor  # (R, d / 2) fp32
    sin: torch.Tensor
    latents: torch.Tensor  # (B, T, C) fp32
    step: torch.Tensor  # (1,) int64
    hidden: torch.Tensor  # (R, H): text rows from prepare, image rows of this step
    velocity: torch.Tensor  # (B, T, C) fp32
    attention: dict[tuple[int, int], str | None]  # (samples, rows) -> backend
    graph: torch.cuda.CUDAGraph | None = None
    weights: tuple[int, ...] = ()  # the addresses that the graph reads

    @property
    def lengths(self) -> list[int]:
        """Return the packed rows of each sample."""
        return [text + self.latents.shape[1] for text in self.text_lengths]

    def text_of(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """Return views of each sample's text rows."""
        rows = zip(packed.split(self.lengths), self.text_lengths, strict=True)
        return [sample[:text] for sample, text in rows]

    def image_of(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """Return views of each sample's image rows."""
        rows = zip(packed.split(self.lengths), self.text_lengths, strict=True)
        return [sample[text:] for sample, text in rows]


class EngineBranch:
    """Run one branch fast: `tabulate` once a schedule, `prepare` once an image, `velocity` a step.

    Args:
        module: an Ideogram4Transformer2DModel with any linears. The weights of q/k/v and of w1/w3
            are stacked, and the module's own become views of them; its stock forward still runs.
        graphs: capture the forward into a CUDA graph; default: on CUDA.
        attention: a backend of `models.engine.attention.BACKENDS`; default: the fastest, measured.

    Raises:
        UserError: an unknown attention backend, a device on which the kernels do not run, or one
            that is full.

    One thread at a time. Stacked weights that move afterwards must be shared again, as
    models/offload.py does; `prepare` notices where they were not.
    """

    def __init__(
        self, module: nn.Module, *, graphs: bool | None = None, attention: str | None = None
    ) -> None:
        if attention is not None:
            check_backend(attention)
        self.module, self.attention = module, attention
        backend_name(self.device)
        with torch.no_grad(), enough_memory("stacking a branch's weights", STAGED):
            self.blocks = [Block.of(layer) for layer in module.layers]
        self._graphs = graphs
        self._modulation: Modulation | None = None
        self._layouts: OrderedDict[Key, Layout] = OrderedDict()
        self._current: Layout | None = None  # what `velocity` runs

    @property
    def device(self) -> torch.device:
        """Return where the branch computes."""
        return self.module.embed_image_indicator.weight.device

    @property
    def uses_graphs(self) -> bool:
        """Tell whether `velocity` replays a CUDA graph."""
        return self.device.type == "cuda" if self._graphs is None else self._graphs

    @torch.no_grad()
    def tabulate(self, timesteps: torch.Tensor) -> None:
        """Compute the adaLN modulations of all steps.

        Args:
            timesteps: (S,) fp32 model time in [0, 1], 0 noise and 1 data.

        Raises:
            UserError: out of GPU memory.
        """
        with enough_memory(f"adaLN of {len(timesteps)} steps", f"lower steps, or {STAGED}"):
            modulation = tabulate_modulation(self.module, timesteps)
        if self._modulation is None or not self._modulation.replace(modulation):
            self._modulation = modulation
            for layout in self._layouts.values():
                self._drop_graph(layout)  # it reads the old table

    @torch.no_grad()
    def prepare(
        self, text: Sequence[torch.Tensor] | None, grid: tuple[int, int], batch: int
    ) -> None:
        """Take the captions of the next images and lay out their rows.

        Args:
            text: of each sample (n, llm_features_dim) features of its n >= 1 tokens, on any
                device; None for the unconditional branch, whose text projection is not touched.
            grid: rows and columns of image tokens.
            batch: samples, B.

        Raises:
            ValueError: as many texts as samples are expected, of the model's width.
            UserError: out of GPU memory, or linears that were exchanged, moved, cast or stacked by
                another engine since this one was made.
        """
        texts = [] if text is None else list(text)
        width = self.module.config.llm_features_dim
        if text is not None and len(texts) != batch:
            raise ValueError(f"prepare: text must have {batch} entries, got {len(texts)}")
        for features in texts:
            if features.ndim != 2 or features.shape[1] != width:
                raise ValueError(
                    f"prepare: text features must be (n, {width}), got {tuple(features.shape)}"
                )
        self._current = None
        self._check_weights()
        lengths = tuple(len(features) for features in texts) or (0,) * batch
        key = (lengths, tuple(grid))
        with _enough(batch, grid[0] * grid[1], lengths):
            if key not in self._layouts:
                while len(self._layouts) >= LAYOUTS_KEPT:
                    self._drop_oldest()
                self._layouts[key] = self._lay_out(lengths, grid)
            self._layouts.move_to_end(key)
            layout = self._layouts[key]
            if texts:
                projected = self._project_text(texts).split(lengths)
                for rows, values in zip(layout.text_of(layout.hidden), projected, strict=True):
                    rows.copy_(values)
        if layout.weights != self._addresses():
            self._drop_graph(layout)
        self._current = layout

    @torch.no_grad()
    def velocity(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Predict the velocity of the images.

        Args:
            latents: (B, T, C) fp32.
            step: index into the timesteps of `tabulate`.

        Returns:
            (B, T, C) fp32. The next call may overwrite it: copy what must last.

        Raises:
            ValueError: before `tabulate` and `prepare`, or an argument that does not fit them.
            UserError: out of GPU memory (first call of a layout, which captures its graph).
        """
        if self._modulation is None or self._current is None:
            raise ValueError("velocity: call tabulate and prepare first")
        layout = self._current
        if latents.shape != layout.latents.shape:
            raise ValueError(
                f"velocity: latents must be {tuple(layout.latents.shape)} as prepared, got "
                f"{tuple(latents.shape)}"
            )
        if not 0 <= step < len(self._modulation.blocks):
            raise ValueError(
                f"velocity: step must be in 0..{len(self._modulation.blocks) - 1} as tabulated, "
                f"got {step}"
            )
        layout.latents.copy_(latents)
        layout.step.fill_(step)
        with _enough(*latents.shape[:2], layout.text_lengths):
            if not self.uses_graphs:
                self._run(layout)
                return layout.velocity
            if layout.graph is None:
                layout.graph = capture(lambda: self._run(layout), self.device)
                layout.weights = self._addresses()
        layout.graph.replay()
        return layout.velocity

    def release(self) -> None:
        """Forget layouts, graphs and tables, and so all memory that is not the module's."""
        while self._layouts:
            self._drop_oldest()
        self._modulation = self._current = None

    def _drop_oldest(self) -> None:
        _, layout = self._layouts.popitem(last=False)
        self._drop_graph(layout)

    def _drop_graph(self, layout: Layout) -> None:
        """Forget a graph once it has run to its end."""
        if layout.graph is not None:
            torch.cuda.synchronize(self.device)
            layout.graph = None

    def _check_weights(self) -> None:
        """Refuse linears that the engine would not compute with."""
        for index, block in enumerate(self.blocks):
            if not block.is_current:
                raise UserError(
                    "the engine needs the linears that it was made on, got others or moved ones "
                    f"in layers.{index}; make a new engine after a LoRA, a move or a cast"
                )

    def _addresses(self) -> tuple[int, ...]:
        """List where all weights are; a graph would read on where they were."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return tuple(tensor.data_ptr() for tensor in tensors)

    def _lay_out(self, lengths: tuple[int, ...], grid: tuple[int, int]) -> Layout:
        device, config = self.device, self.module.config
        tokens = grid[0] * grid[1]
        cos, sin = rotary(self.module, positions(lengths, grid))
        shape = (len(lengths), tokens, config.in_channels)
        rows = [length + tokens for length in lengths]
        calls = [(len(rows), rows[0])] if len(set(rows)) == 1 else [(1, row) for row in rows]
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        dtype = self.module.dtype
        return Layout(
            text_lengths=lengths,
            cos=cos.to(device),
            sin=sin.to(device),
            latents=torch.zeros(shape, device=device),
            step=torch.zeros(1, dtype=torch.long, device=device),
            hidden=torch.zeros(sum(rows), heads * head_dim, dtype=dtype, device=device),
            velocity=torch.zeros(shape, device=device),
            attention={
                call: self.attention or choose_attention(*call, heads, head_dim, dtype, device)
                for call in calls
            },
        )

    def _project_text(self, texts: list[torch.Tensor]) -> torch.Tensor:
        """Compute the rows (sum of n, H) that the text adds to the sequence in every step."""
        module = self.module
        features = torch.cat([t.to(self.device, module.dtype) for t in texts])
        projected = module.llm_cond_proj(module.llm_cond_norm(features).to(module.dtype))
        return projected + module.embed_image_indicator.weight[TEXT_ROW]

    def _run(self, layout: Layout) -> None:
        """Compute layout.velocity from layout.latents and layout.step; waits for nothing."""
        module, modulation = self.module, self._modulation
        blocks = modulation.blocks.index_select(0, layout.step)[0]  # (layers, 4, H)
        final = modulation.final.index_select(0, layout.step)  # (1, H)
        image = module.input_proj(layout.latents.flatten(0, 1).to(layout.hidden.dtype))
        image = image + module.embed_image_indicator.weight[IMAGE_ROW]
        image = image.split(layout.latents.shape[1])
        for rows, values in zip(layout.image_of(layout.hidden), image, strict=True):
            rows.copy_(values)
        hidden = run_blocks(
            self.blocks,
            layout.hidden,
            blocks,
            layout.cos,
            layout.sin,
            layout.lengths,
            layout.attention,
        )
        output = module.final_layer
        rows = torch.cat(layout.image_of(hidden)).float()
        rows = F.layer_norm(rows, rows.shape[1:], eps=output.norm_final.eps) * final
        layout.velocity.copy_(output.linear(rows.to(hidden.dtype)).view_as(layout.velocity))


def _enough(batch: int, tokens: int, lengths: Sequence[int]) -> AbstractContextManager[None]:
    return enough_memory(
        f"the engine, for {batch} images of {tokens} tokens with up to {max(lengths)} of text,",
        f"lower size or batch, or {STAGED}",
    )
