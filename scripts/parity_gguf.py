"""Compare the Q8_0 and Q4_K quantizers with ggml's own, compiled here from a source package.

    python scripts/parity_gguf.py                                 # builds ggml once: half a minute
    python scripts/parity_gguf.py --rows 2048                     # larger random matrices

Needs a C and a C++ compiler, and pip with a way to PyPI the first time. The library is kept in
outputs/parity; nothing is installed. Q8_0 must give the same bytes. Q4_K is a search, and ours is
another one than ggml's: its mean squared error is compared, and a ratio above 1.05 is a failure.
Writes <out>, by default outputs/results/parity/gguf.csv (matrix, format, mse_ours, mse_ggml,
ratio). Prints one JSON document last; speeds are in M weights/s of CPU time, one thread.
"""

import argparse
import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"parity_gguf: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

import pandas as pd

from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", type=int, default=512)
    made.add_argument("--model", default="models/mini")
    made.add_argument("--cache", default="outputs/parity")
    made.add_argument("--out", default="outputs/results/parity/gguf.csv")
    return made


if __name__ == "__main__":
    parser().parse_args()  # help and mistakes end here: what follows takes seconds

import torch

from dit8.quant.architectures.ideogram4 import BRANCHES
from dit8.quant.checkpoint.gguf_header import KINDS
from dit8.quant.checkpoint.read import weight_files
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.formats import q4_k, q8_0
from dit8.quant.types import Codec

# The smallest source package on PyPI that carries a recent ggml (MIT licence): 3.4 MB.
PACKAGE, VERSION = "ggml-python", "0.0.45"  # ggml 0.15.3
SHA256 = "10aac52075cf3c7ef2b00d6c35b1c23f7b018dbeff8ae8df67339b4be1166f05"
# What its CMake target ggml-base compiles, but for the optimizer.
SOURCES = (
    "ggml.c",
    "ggml-alloc.c",
    "ggml-quants.c",
    "ggml-backend.cpp",
    "ggml-backend-meta.cpp",
    "ggml-threading.cpp",
    "gguf.cpp",
)
FLAGS = ("-O3", "-fPIC", "-D_GNU_SOURCE", '-DGGML_VERSION=""', '-DGGML_COMMIT=""')
JOBS = 2
RATIO_MAX = 1.05
K = 4608  # of the random matrices, as in the real model
Quantizer = Callable[[torch.Tensor], torch.Tensor]


def build(folder: Path) -> Path:
    """Compile ggml's quantizers, unless that has been done.

    Returns:
        the shared library.

    Raises:
        UserError: no compiler, no download, or another file than the one that was examined.
    """
    library = folder / f"{PACKAGE}-{VERSION}.so"
    if library.exists():
        return library
    missing = [name for name in ("cc", "c++") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"build: ggml needs the compilers cc and c++, got no {' and no '.join(missing)} on the "
            "PATH; install them, on Debian with apt-get install gcc g++"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        # pip asks a source package for its metadata, in an environment of its own; that compiles
        # nothing
        _run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
            + ["--dest", str(place), f"{PACKAGE}=={VERSION}"]
        )
        archive = next(place.glob("*.tar.gz"))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256:
            raise UserError(
                f"build: {archive.name} must have the sha256 {SHA256}, got {digest}; do not use it"
            )
        with tarfile.open(archive) as package:
            package.extractall(place, filter="data")
        ggml = next(place.glob("*/vendor/ggml"))
        includes = [f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"]

        def compile_one(name: str) -> None:
            compiler = "cc" if name.endswith(".c") else "c++"
            source, made = str(ggml / "src" / name), str(place / f"{name}.o")
            _run([compiler, *FLAGS, *includes, "-c", source, "-o", made])

        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(compile_one, SOURCES))
        objects = [str(place / f"{name}.o") for name in SOURCES]
        made = place / library.name
        _run(["c++", "-shared", "-pthread", *objects, "-o", str(made)])
        made.replace(library)
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["?"]
        raise UserError(
            f"build: {' '.join(command[:4])} must succeed, got {lines[0].strip()!r}; ggml is only "
            "needed for this comparison"
        )


def reference(library: Path, kind: str) -> Quantizer:
    """Return ggml's quantizer of a kind: (N, K) fp32 -> blocks (N, bytes of a row) uint8."""
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    integers, pointer = [ctypes.c_int64] * 3, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, *integers, pointer]
    how = KINDS[kind]

    def quantize(weight: torch.Tensor) -> torch.Tensor:
        n, k = weight.shape
        blocks = torch.empty(n, k // how.values * how.nbytes, dtype=torch.uint8)
        # first row 0, no importance matrix
        size = function(how.number, weight.data_ptr(), blocks.data_ptr(), 0, n, k, None)
        assert size == blocks.numel(), f"ggml wrote {size} bytes, not {blocks.numel()}"
        return blocks

    return quantize


def matrices(rows: int, model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, (N, K) fp32): random ones of fixed seeds, and the linears of a model."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(rows, K, generator=generator)

    yield "gaussian", 0.02 * normal()
    chi = torch.stack([normal() for _ in range(3)]).square_().mean(dim=0).sqrt_()
    yield "student_t3", 0.02 * normal() / chi
    large = torch.rand(rows, K, generator=generator) < 0.001
    yield "outliers", 0.02 * torch.where(large, 50.0, 1.0) * normal()
    yield "shifted", 1.0 + 0.1 * normal()
    yield "small", 0.0005 * normal()  # the fp16 scale is a subnormal number
    stacked: dict[str, list[torch.Tensor]] = {}
    for subfolder in BRANCHES.values():
        for path in weight_files(model / subfolder):
            with SafetensorsFile(path) as file:
                for name, spec in file.specs.items():
                    if len(spec.shape) == 2 and ".layers." in f".{name}":
                        module = name.split(".", 2)[2].removesuffix(".weight")
                        stacked.setdefault(module, []).append(file.read(name).float())
    for module, weights in stacked.items():
        if weights[0].shape[1] % q4_k.SUPER == 0:
            yield f"{model.name} {module}", torch.cat(weights)


def compare(name: str, weight: torch.Tensor, codec: Codec, quantize: Quantizer) -> dict:
    """Quantize a matrix both ways; one row of the table, and the two CPU times.

    Raises:
        UserError: the bytes of Q8_0 differ, or Q4_K is much worse than ggml's.
    """
    begin = time.process_time()
    ours = codec.encode(weight)[".weight"]
    middle = time.process_time()
    theirs = quantize(weight)
    end = time.process_time()
    errors = [
        float((codec.decode({".weight": blocks}, torch.float32) - weight).double().square().mean())
        for blocks in (ours, theirs)
    ]
    ratio = errors[0] / errors[1]
    if codec is q8_0.CODEC and not torch.equal(ours, theirs):
        raise UserError(
            f"compare: Q8_0 of {name} must equal ggml's bytes, got {int((ours != theirs).sum())} "
            f"of {ours.numel()} that differ; correct quant/formats/q8_0.py"
        )
    if not ratio <= RATIO_MAX:
        raise UserError(
            f"compare: {codec.name} of {name} must have at most {RATIO_MAX} of ggml's squared "
            f"error, got {ratio:.4f}; correct quant/formats/{codec.name}.py"
        )
    row = {"matrix": name, "format": codec.name, "mse_ours": errors[0], "mse_ggml": errors[1]}
    return row | {"ratio": ratio, "seconds": (middle - begin, end - middle)}


def parity(arguments: argparse.Namespace) -> dict:
    """Build, compare, write the table."""
    torch.set_num_threads(1)
    library = build(from_root(arguments.cache))
    rows, speed = [], {}
    for kind, codec in (("Q8_0", q8_0.CODEC), ("Q4_K", q4_k.CODEC)):
        quantize = reference(library, kind)
        seconds, values = [0.0, 0.0], 0
        for name, weight in matrices(arguments.rows, from_root(arguments.model)):
            row = compare(name, weight, codec, quantize)
            seconds = [a + b for a, b in zip(seconds, row.pop("seconds"), strict=True)]
            values += weight.numel()
            rows.append(row)
        speed[codec.name] = [round(values / total / 1e6, 1) for total in seconds]
    frame = pd.DataFrame(rows)
    out = from_root(arguments.out)
    write_atomically(out, lambda path: frame.to_csv(path, index=False, float_format="%.6g"))
    print(frame.to_string(index=False, float_format="{:.4g}".format))
    ratios = frame[frame["format"] == "q4_k"]["ratio"]
    return {
        "out": shorten(out),
        "ggml": f"{PACKAGE} {VERSION}",
        "q8_0_bytes_equal": True,  # `compare` stops otherwise
        "q4_k_ratio": {"min": round(ratios.min(), 4), "max": round(ratios.max(), 4)},
        "speed_ours_ggml": speed,
    }


def main() -> None:
    with one_sentence("parity_gguf"):
        print(json.dumps(parity(parser().parse_args())))


if __name__ == "__main__":
    main()
