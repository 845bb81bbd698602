"""The decoding kernels against the formats' own decoders, bit for bit: interpreted and on CUDA."""

from contextlib import contextmanager

import pytest
import torch

from dit8.quant.formats import fp8, nf4, q4_k, q8_0

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import decode  # noqa: E402
from dit8.kernels.decode_triton import Config, choose_config, launch  # noqa: E402
from dit8.scripts.arch_compile import read_usage  # noqa: E402

MODULE = "dit8.kernels.decode_triton"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODECS = {codec.name: codec for codec in (fp8.CODEC, q8_0.CODEC, q4_k.CODEC, nf4.CODEC)}


def random_bytes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def with_halves(stored, width, count):
    """Put fp16 numbers of all sizes and both signs where the blocks have theirs, and rare ones."""
    blocks = stored.view(-1, width)
    size = torch.logspace(-7, 2, blocks.shape[0] * count)  # subnormals too
    halves = (size * (-1.0) ** (torch.arange(len(size)) // 3)).half()
    rare = torch.tensor([0.0, -0.0, 65504.0, torch.inf, torch.nan]).half()
    halves[1 : 1 + len(rare)] = rare[: len(halves) - 1]
    blocks[:, : 2 * count] = halves.view(-1, count).view(torch.uint8)
    return stored


def draw_stored(name, n, k):
    """Return tensors of a format by suffix, of random bytes: more than any file has."""
    if name == "fp8":
        codes = random_bytes(n, k)
        codes.view(-1)[: min(256, n * k)] = torch.arange(min(256, n * k), dtype=torch.uint8)
        scales = torch.logspace(-30, 30, n)
        return {".weight": codes.view(torch.float8_e4m3fn), ".weight_scale": scales}
    if name == "nf4":
        absmax = torch.logspace(-30, 30, n * k // 64)
        return {
            ".weight": random_bytes(n * k // 2, 1),
            ".weight.absmax": absmax,
            ".weight.quant_map": torch.linspace(-1, 1, 16) ** 3,
            nf4.STATE: nf4.make_state(n, k),
        }
    stored = random_bytes(*CODECS[name].specs(n, k)[".weight"].shape)
    width, count = (34, 1) if name == "q8_0" else (144, 2)
    return {".weight": with_halves(stored, width, count)}


def parts_of(name, tensors):
    """Return what `launch` takes of them."""
    return [tensor for suffix, tensor in tensors.items() if suffix != nf4.STATE]


def same_bits(got, expected):
    """Compare bits, except that every NaN is one."""
    whole = {2: torch.int16, 4: torch.int32}[got.element_size()]
    equal = got.view(whole) == expected.view(whole)
    return bool((equal | (got.isnan() & expected.isnan())).all())


SHAPES = {
    "fp8": [(3, 256), (5, 700), (1, 1), (2, 17408)],
    "q8_0": [(3, 96), (5, 4608)],
    "q4_k": [(1, 256), (3, 1280), (2, 4608)],
    "nf4": [(1, 64), (5, 192), (2, 4608)],
}
CASES = {
    f"{name}-{n}x{k}-{str(dtype)[6:]}": (name, n, k, dtype)
    for name, shapes in SHAPES.items()
    for n, k in shapes
    for dtype in DTYPES
}


@pytest.fixture(scope="module")
def interpreted(run_interpreted):
    cases = {}
    for label, (name, n, k, dtype) in CASES.items():
        if dtype == torch.bfloat16:
            continue  # the interpreter cuts fp32 off to bf16 instead of rounding
        weight = torch.full((n, k), -77.0, dtype=dtype)
        parts = parts_of(name, draw_stored(name, n, k))
        cases[label] = ((name, parts, weight), choose_config(name, k))
    for name in CODECS:
        parts = parts_of(name, draw_stored(name, 4, 512))
        cases[f"{name}-other-spread"] = ((name, parts, torch.zeros(4, 512)), Config(512, 1))
    cases["nothing"] = (("fp8", parts_of("fp8", draw_stored("fp8", 0, 8)), torch.zeros(0, 8)),
                        Config(512, 1))  # fmt: skip
    return run_interpreted(MODULE, cases)


@pytest.mark.parametrize("label", [label for label in CASES if "bfloat16" not in label])
def test_interpreted_kernel_gives_the_decoders_bits(interpreted, label):
    name, n, k, dtype = CASES[label]
    weight = interpreted[label][2]
    expected = CODECS[name].decode(draw_stored(name, n, k), dtype)
    assert weight.dtype == expected.dtype == dtype
    assert same_bits(weight, expected)


@pytest.mark.parametrize("name", CODECS)
def test_the_spread_changes_nothing(interpreted, name):
    expected = CODECS[name].decode(draw_stored(name, 4, 512), torch.float32)
    assert same_bits(interpreted[f"{name}-other-spread"][2], expected)


def test_a_weight_without_elements_is_left_alone(interpreted):
    assert interpreted["nothing"][2].shape == (0, 8)


@pytest.mark.parametrize(
    "name, k, config",
    [
        ("fp8", 8, (256, 1)),
        ("fp8", 768, (1024, 1)),
        ("fp8", 4608, (4096, 4)),
        ("q8_0", 256, (4096, 4)),
    ],
)
def test_choose_config(name, k, config):
    assert choose_config(name, k) == Config(*config)


@pytest.mark.parametrize("name", CODECS)
def test_builds_spill_nothing_and_need_no_cast_from_e4m3(compile_launch, name):
    """sm_80 and sm_86 have no such cast."""
    weight = torch.empty(16, 12288, dtype=torch.bfloat16)
    parts = parts_of(name, draw_stored(name, 16, 12288))
    build = compile_launch(86, launch, name, parts, weight, choose_config(name, 12288))
    usage = read_usage(build.kernel)
    assert usage.stack_bytes == usage.spill_instructions == 0


def test_devices_without_the_kernels_use_torch(monkeypatch):
    has_kernel = decode.has_kernel.__wrapped__  # no answer is kept for the other tests
    assert not has_kernel(torch.device("cpu"))
    assert not has_kernel(torch.device("mps"))
    for capability, expected in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert has_kernel(torch.device("cuda:7")) is expected
    monkeypatch.setattr(decode, "find_spec", lambda name: None)
    assert not has_kernel(torch.device("cuda:7"))


@pytest.mark.parametrize(
    "name, stored, got",
    [
        ("q8_0", [torch.zeros(4, 305, dtype=torch.uint8)], r"\(1220,\) of torch.uint8"),
        ("q8_0", [torch.zeros(4, 306, dtype=torch.int16)], r"\(1224,\) of torch.int16"),
        (
            "fp8",
            [torch.zeros(4, 288, dtype=torch.uint8), torch.ones(1)],
            r"\(1152, 1\) of torch.ui",
        ),
        (
            "fp8",
            [torch.zeros(4, 288, dtype=torch.uint8), torch.ones(4).half()],
            "uint8, torch.float16",
        ),
        ("fp8", [torch.zeros(4, 288, dtype=torch.uint8)], r"\(1152,\) of torch.uint8"),
    ],
)
def test_tensors_that_a_kernel_would_read_beyond_are_refused(name, stored, got):
    with pytest.raises(ValueError, match=rf"^decode_into: {name} of \(4, 288\) must have .*{got}"):
        decode.decode_into(name, stored, torch.empty(4, 288))
    with pytest.raises(ValueError, match="must be among fp8, q8_0, q4_k, nf4, got 'q5_k'"):
        decode.decode_into("q5_k", stored, torch.empty(4, 288))


def test_a_kernel_is_launched_on_the_device_of_its_weight(monkeypatch):
    current, launched = [], []

    @contextmanager
    def device(wanted):
        current.append(wanted)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        "dit8.kernels.decode_triton.launch",
        lambda *arguments: launched.append((*current, *arguments)),
    )
    stored, weight = random_bytes(4, 2 * 4896)[:, ::2], torch.empty(4, 4608)
    decode.decode_into("q8_0", [stored], weight)
    ((where, name, (part,), target, config),) = launched
    assert (where, name, config) == (weight.device, "q8_0", choose_config("q8_0", 4608))
    assert target is weight and part.is_contiguous() and part.equal(stored)


@pytest.mark.gpu
@pytest.mark.parametrize("label", CASES)
def test_cuda_kernel_gives_the_decoders_bits(cuda, label):
    name, n, k, dtype = CASES[label]
    tensors = draw_stored(name, n, k)
    on_gpu = {key: part if key == nf4.STATE else part.to(cuda) for key, part in tensors.items()}
    assert decode.has_kernel(on_gpu[".weight"].device)
    weight = CODECS[name].decode(on_gpu, dtype)
    assert same_bits(weight.cpu(), CODECS[name].decode(tensors, dtype))
    # of a part that begins inside, at addresses of another alignment, and from a CUDA graph
    if n < 2:
        return
    (_, part), (_, expected) = (CODECS[name].split_rows(of, [1, n - 1]) for of in (on_gpu, tensors))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        weight = CODECS[name].decode(part, dtype)
    weight.fill_(-77)
    graph.replay()
    assert same_bits(weight.cpu(), CODECS[name].decode(expected, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CODECS)
def test_cuda_kernel_equals_torch_at_full_width(cuda, name, monkeypatch):
    tensors = draw_stored(name, 13824, 4608)
    on_gpu = {key: part if key == nf4.STATE else part.to(cuda) for key, part in tensors.items()}
    weight = CODECS[name].decode(on_gpu, torch.bfloat16)
    module = {"fp8": fp8, "q8_0": q8_0, "q4_k": q4_k, "nf4": nf4}[name]
    monkeypatch.setattr(module, "has_kernel", lambda device: False)
    assert same_bits(weight, CODECS[name].decode(on_gpu, torch.bfloat16))
