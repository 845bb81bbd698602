"""Expand short ideas into captions.

    python scripts/expand.py 'a poster for a tea shop that says "OPEN LATE"'
    python scripts/expand.py --with poster 'a poster that says "TEA"'       # as the mini draws it
    python scripts/expand.py 'a red fox in snow' --to caption.json
    python scripts/expand.py --ideas ideas.txt --to prompts/mine.jsonl     # one idea a line
    DIT8_EXPAND_URL=http://localhost:8000/v1 DIT8_EXPAND_MODEL=qwen3 \\
      python scripts/expand.py --with endpoint 'a red fox in snow'   # its key: DIT8_EXPAND_KEY
    python scripts/expand.py --with enhancer --device cuda 'a red fox in snow'

template and poster need nothing, and poster knows only what the bundled mini draws; endpoint is any
OpenAI-compatible server; enhancer is the one of diffusers, where its weights are. What the last two
answer is kept in --cache and not asked for again. An idea that fails is named and the others go on;
the same command tries it again. Prints one JSON document last.
"""

import argparse
import json
import sys
from pathlib import Path

try:
    from dit8.conf.paths import from_root, shorten
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"expand: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.captions import expected_text, parse
from dit8.eval.expand import Expander, expand
from dit8.eval.expand_endpoint import endpoint_expander
from dit8.eval.expand_template import TemplateExpander
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

OFFLINE = ("template", "poster")  # as quick as a cache
NAMES = (*OFFLINE, "endpoint", "enhancer")


def open_expander(
    name: str, model: Path, head: Path | None = None, device: str = "auto"
) -> Expander:
    """Make the expander of that name; what it lacks, it says itself.

    Args:
        name: of NAMES.
        model: folder, of the enhancer alone.
        head: folder, of the enhancer alone; None: in the model's.
        device: of the enhancer alone.

    Raises:
        UserError: no such expander.
    """
    if name == "template":
        return TemplateExpander()
    if name == "poster":
        from dit8.eval.expand_poster import PosterExpander  # half a second: matplotlib

        return PosterExpander()
    if name == "endpoint":
        return endpoint_expander()
    if name == "enhancer":
        from dit8.eval.expand_enhancer import EnhancerExpander  # seconds: torch

        return EnhancerExpander(model, head or model / "prompt_enhancer_head", device)
    raise UserError(f"expander must be one of {', '.join(NAMES)}, got {name!r}; correct the name")


def expanded(expander: Expander, idea: str, cache: Path) -> str:
    """Return the caption of an idea, and say on stderr what of the idea it does not show.

    Args:
        expander: see `open_expander`.
        idea: a sentence.
        cache: folder for answers of models; those of templates are not kept.

    Raises:
        UserError: as `eval.expand.expand`.
    """
    caption = expand(expander, idea, None if expander.name in OFFLINE else cache)
    if remarks := expander.remarks(" ".join(idea.split())):
        print("; ".join(remarks), file=sys.stderr)
    return caption


def read_ideas(path: Path) -> dict[int, str]:
    """Read one idea a line, by line number; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--ideas must be a UTF-8 file with one idea a line, got {path} ({error})"
        ) from error
    ideas = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not ideas:
        raise UserError(f"--ideas must hold one idea a line, got no line in {path}")
    return ideas


def prompt_row(number: int, idea: str, caption: str, seed: int) -> dict:
    """Lay out a row of a prompt set; id and seed follow the line, whichever others fail."""
    return {
        "id": f"idea-{number:04d}",
        "caption": json.loads(caption),
        "texts": list(expected_text(parse(caption))),
        "seed": seed + number,
        "idea": idea,
    }


def expand_all(
    expander: Expander, ideas: dict[int, str], cache: Path, seed: int
) -> tuple[list[dict], list[dict]]:
    """Expand every idea; returns rows of a prompt set, and what failed with its reason."""
    rows, failed = [], []
    for number, idea in ideas.items():
        try:
            rows.append(prompt_row(number, idea, expanded(expander, idea, cache), seed))
        except UserError as error:
            print(f"line {number}: {error}", file=sys.stderr)
            failed.append({"line": number, "idea": idea, "reason": str(error)})
    return rows, failed


def write_text(path: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def run(arguments: argparse.Namespace) -> dict:
    """Expand one idea or a file of them; returns the document."""
    if (arguments.idea is None) == (arguments.ideas is None):
        raise UserError("expand must get one idea, or a file of them with --ideas, and not both")
    if arguments.ideas is not None and arguments.to is None:
        raise UserError("--ideas needs a file to write the prompt set to; name it with --to")
    model = from_root(arguments.model)
    expander = open_expander(arguments.expander, model, arguments.head, arguments.device)
    if obstacle := expander.obstacle():
        raise UserError(f"expander {expander.name} is {obstacle}")
    cache = from_root(arguments.cache)
    document: dict = {"expander": expander.name}
    if arguments.idea is not None:
        caption = expanded(expander, arguments.idea, cache)
        document |= {"texts": list(expected_text(parse(caption))), "caption": json.loads(caption)}
        if arguments.to is not None:
            write_text(arguments.to, [caption])
            document["to"] = shorten(arguments.to)
        return document
    rows, failed = expand_all(expander, read_ideas(arguments.ideas), cache, arguments.seed)
    if rows:
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        write_text(arguments.to, lines)
        document["to"] = shorten(arguments.to)
    return document | {"written": len(rows), "failed": failed}


def main() -> None:
    with one_sentence("expand"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("idea", nargs="?")
        parser.add_argument("--with", dest="expander", choices=NAMES, default="template")
        parser.add_argument("--ideas", type=Path)
        parser.add_argument("--to", type=Path)
        parser.add_argument("--seed", type=int, default=0, help="of line n: this plus n")
        parser.add_argument("--cache", default="outputs/expanded")
        parser.add_argument("--model", default="checkpoints/models/ideogram4", help="enhancer")
        parser.add_argument("--head", type=Path, help="enhancer; default: in the model's folder")
        parser.add_argument("--device", default="auto", help="enhancer: auto, cpu or cuda")
        document = run(parser.parse_args())
        print(json.dumps(document, ensure_ascii=False, separators=(",", ":")))
    sys.exit(2 if document.get("failed") else 0)


if __name__ == "__main__":
    main()
