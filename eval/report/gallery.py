"""Lay out the gallery: every prompt with all its pictures, the largest change first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dit8.eval.report.data import Exhibit, Measure, Picture
from dit8.eval.report.load import Evaluation, Measured
from dit8.eval.report.pictures import GAIN, MEGABYTE, Shot, Thumbnail, make_thumbnails
from dit8.eval.report.readings import ReadTexts
from dit8.models.types import Sample, SampleKey

# what the gallery is sorted by: the first of these that was measured, else the first score
RANKING = ("lpips", "latent_error", "ssim", "psnr")

Readings = Mapping[str, Mapping[SampleKey, ReadTexts]]  # label -> readings


@dataclass(frozen=True)
class Gallery:
    """Hold the prompts in the order they are shown, the score that gives it, and a note on how."""

    exhibits: tuple[Exhibit, ...]
    ranked_by: str
    note: str


def lay_out(
    evaluation: Evaluation,
    measures: Sequence[Measure],
    readings: Readings,
    limit_bytes: float,
) -> Gallery:
    """Put every prompt's pictures together.

    Args:
        measures: scores whose changes are told.
        readings: texts read; labels without them show none.
        limit_bytes: for all pictures of the page.

    Raises:
        UserError: a picture cannot be read, two of a prompt differ in size, or all together do
            not fit.
    """
    columns = evaluation.columns
    keys = [sample.key for sample in evaluation.reference.run.samples]
    samples = [{sample.key: sample for sample in column.run.samples} for column in columns]
    shots = [
        Shot(mine[key].image_path, None if mine is samples[0] else samples[0][key].image_path)
        for key in keys
        for mine in samples
    ]
    thumbnails = make_thumbnails(shots, limit_bytes)
    names = [measure.name for measure in measures]
    ranked_by = next((name for name in RANKING if name in names), names[0] if names else "")
    exhibits = []
    for index, key in enumerate(keys):
        mine = thumbnails.shots[index * len(columns) : (index + 1) * len(columns)]
        pictures = tuple(
            _picture(column, key, thumbnail, evaluation.reference, measures, readings)
            for column, thumbnail in zip(columns, mine, strict=True)
        )
        exhibits.append(_exhibit(samples[0][key], pictures, ranked_by))
    exhibits.sort(key=lambda exhibit: -exhibit.change)  # stable: ties in prompt order
    note = (
        f"All {len(keys)} prompts, the largest change in {ranked_by} first. "
        f"Pictures are WebP of at most {thumbnails.side_px} px a side, the largest step at which "
        f"all of them stay below {limit_bytes / MEGABYTE:g} MB; scores were computed on the "
        f"lossless ones. Differences are {GAIN} times the largest difference of the three "
        "channels: black is none."
    )
    return Gallery(tuple(exhibits), ranked_by, note)


def size_of_change(measure: Measure, value: float, reference: float | None) -> float:
    """Return how far a picture moved from the reference's, by one score; not negative.

    A relative score: its distance from the value of identical pictures, the bound on the good
    side. Another: the absolute difference of the two pictures' scores.
    """
    if measure.is_relative:
        return abs(measure.bounds[measure.higher_is_better] - value)
    assert reference is not None, "size_of_change: a score that is not relative has both values"
    return abs(value - reference)


def _picture(
    column: Measured,
    key: SampleKey,
    thumbnail: Thumbnail,
    reference: Measured,
    measures: Sequence[Measure],
    readings: Readings,
) -> Picture:
    scores = {name: values[key] for name, values in column.scores.items() if key in values}
    changes = {}
    if column is not reference:
        for measure in measures:
            other = reference.scores.get(measure.name, {}).get(key)
            if measure.name in scores and (measure.is_relative or other is not None):
                changes[measure.name] = size_of_change(measure, scores[measure.name], other)
    read = readings.get(column.label, {}).get(key)
    return Picture(
        column.label,
        thumbnail.image,
        thumbnail.difference,
        thumbnail.width_px,
        thumbnail.height_px,
        scores,
        changes,
        None if read is None else read.lines,
        () if read is None else read.found,
    )


def _exhibit(sample: Sample, pictures: tuple[Picture, ...], ranked_by: str) -> Exhibit:
    return Exhibit(
        key=sample.key,
        category=sample.prompt.category,
        idea=sample.prompt.idea,
        caption=_indent(sample.caption),
        texts=sample.texts,
        pictures=pictures,
        change=max((p.changes.get(ranked_by, 0.0) for p in pictures), default=0.0),
    )


def _indent(caption: str) -> str:
    """Indent a caption; one that is not JSON, from an experiment with plain prompts, stays."""
    try:
        return json.dumps(json.loads(caption), indent=2, ensure_ascii=False)
    except ValueError:
        return caption
