"""What detection adds to the page of a run: how precise the models are, and images with their boxes."""

from pathlib import Path

from limbeck.detection.charts import precision_charts
from limbeck.detection.drawn import cuts, drawn_images
from limbeck.report.page import MakeSection, Section, fill
from limbeck.report.record import RunRecord, read_json


def sections(record: RunRecord, section: MakeSection) -> list[Section]:
    """The sections of ``boxes.json``; empty ones where the run has no such file."""
    boxes = read_json(record.folder / "boxes.json") if record.folder is not None else {}
    surest = ", ".join(f"{who} {cut:.2f}" for who, cut in cuts(boxes))
    intro = (
        "Validation images, chosen for what they show. White is what is there; yellow is what is found, dashed where "
        f"it is wrong{f', from the score on at which the F1 is greatest ({surest})' if surest else ''}."
    )
    template, images = Path(__file__).with_name("boxes.html.j2"), drawn_images(boxes)
    return [
        section("s-precision", "What is found", lambda: precision_charts(boxes), ""),
        section("s-boxes", "Images with boxes", lambda: fill(template, images=images) if images else (), intro),
    ]
