"""List every deviation of captions from the schema and from its one spelling.

    python scripts/check_caption.py prompts/example.json other.json
    python scripts/check_caption.py prompts/mini_hard.jsonl       # the captions of a prompt set
    echo '{"compositional_deconstruction":{}}' | python scripts/check_caption.py -

A caption in a prompt set is judged as the model will see it, so white space of the file does not
count. Ends with 1 if anything deviates. Prints one JSON document last.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    from dit8.scripts.cli import one_sentence
except ModuleNotFoundError as missing:
    print(f"check_caption: package {missing.name} is missing; run make venv", file=sys.stderr)
    sys.exit(2)

from dit8.eval.caption_check import deviations
from dit8.models.prompts import load_prompts
from dit8.quant.errors import UserError


def captions(name: str) -> Iterator[tuple[str, str]]:
    """Yield where every caption stands, and its text without the newline at the end."""
    if name == "-":
        yield "stdin", sys.stdin.read().removesuffix("\n")
    elif name.endswith(".jsonl"):
        for prompt in load_prompts(name):
            yield f"{name} {prompt.id}", prompt.caption
    else:
        try:
            yield name, Path(name).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{name} must be a UTF-8 file with a caption or a prompt set (.jsonl), got {error}"
            ) from error


def main() -> None:
    with one_sentence("check_caption"):
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("file", nargs="+", help="- reads one caption from standard input")
        count, found = 0, 0
        for name in parser.parse_args().file:
            for where, text in captions(name):
                count += 1
                for deviation in deviations(text):
                    found += 1
                    print(f"{where}: {deviation}")
        print(json.dumps({"captions": count, "deviations": found}))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
