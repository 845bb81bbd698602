"""Share of texts read exactly, with Wilson's interval: how well a model writes at all."""

from collections.abc import Sequence

import pandas as pd

from dit8.eval.run import Interval
from dit8.eval.stats import wilson_interval
from dit8.models.types import Prompt
from dit8.quant.errors import UserError


def text_accuracy(rows: pd.DataFrame, prompts: Sequence[Prompt]) -> Interval:
    """Count the texts read exactly in one run.

    Args:
        rows: the run's `ocr_exact` rows; a value is the share of a caption's texts.
        prompts: the whole prompt set, in any order.

    Returns:
        a proportion over texts; `n` counts texts. Texts of one picture are taken as independent.

    Raises:
        UserError: rows and prompts do not match one to one.
    """
    texts = {prompt.id: len(prompt.texts) for prompt in prompts}
    if sorted(rows["prompt_id"]) != sorted(texts):
        raise UserError(
            f"text_accuracy: needs one row for each of {len(texts)} prompts, got {len(rows)}; "
            "evaluate the whole set with one seed"
        )
    shares = zip(rows["prompt_id"], rows["value"], strict=True)
    successes = sum(round(value * texts[prompt_id]) for prompt_id, value in shares)
    return wilson_interval(successes, sum(texts.values()))
