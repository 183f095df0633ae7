"""A training loop of one's own, with real records: a probe and a log outside of `fit`, and the page made of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, Probe, losses, models, norms, projectors
from limbeck.data import Batch, Data, DataSpec, open_data
from limbeck.diagnostics import block_equivariance
from limbeck.logs.runlog import RunLog
from limbeck.models import InputTransform, Model
from limbeck.report import write_report
from limbeck.tasks import Classification
from report.planted import CHARTS, Page, check_page, read

EVERY, EPOCHS, BATCH = 20, 3, 64
BLOCKS = ("blocks.1", "blocks.3")


@dataclass(frozen=True)
class Trained:
    folder: Path
    student: Model
    held_back: Batch
    text: str
    page: Page

    @property
    def probes(self) -> list[dict[str, Any]]:
        return [record for record in tiny.records(self.folder) if record["kind"] == "probe"]


def accuracy(model: Model, data: Data) -> float:
    """Top-1 on the validation images."""
    transform, hits = InputTransform(model.input), 0
    model.module.eval()
    with torch.no_grad():
        for images, target, _ in data.val_loader(batch_size=100):
            assert target is not None
            hits += int((model.module(transform(images)).argmax(1) == target).sum())
    model.module.train()
    return hits / data.val_count


def train(folder: Path, *, student: str, teacher: str, size: int, blocks: tuple[str, ...] = ()) -> Trained:
    """Distil on the digits by a plain loop, which writes no more than steps and epochs; the teacher is random."""
    torch.manual_seed(0)
    data = open_data(DataSpec(source="digits", size=size, train_limit=700))
    small, large = (models.build(name, num_classes=10, size=size) for name in (student, teacher))
    d_s, d_t = (model.module.fc.in_features if "cnn" in model.name else 32 for model in (small, large))
    feature = FeatureTerm(
        small.penultimate,
        large.penultimate,
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        correlation_loss=losses.log_correlation,
    )
    task = Classification(student_input=InputTransform(small.input), teacher_input=InputTransform(large.input))
    terms = {"feature": feature, "logit": LogitTerm()}
    distiller = Distiller(small.module, large.module, task, terms=terms)
    optimizer = torch.optim.SGD(distiller.trainable_parameters().values(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    held_back = data.sample("val", 64)
    loader = data.train_loader(batch_size=BATCH, seed=0)
    step = 0
    with RunLog(folder) as log:
        probe = Probe(distiller, held_back, every=EVERY, log=log, optimizer=optimizer, blocks=blocks)
        for epoch in range(EPOCHS):
            loader.set_epoch(epoch)
            distiller.train()
            for batch in loader:
                probe(step, epoch=step / len(loader))
                result = distiller(batch)
                result.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                parts = {name: float(value) for name, value in result.parts.items()}
                log.write("step", step=step, epoch=epoch + 1, loss=float(result.loss.detach()), parts=parts, lr=0.05)
            log.write("epoch", step=step, epoch=epoch + 1, val={"top1": accuracy(small, data)})
        probe.run(step, epoch=EPOCHS)
    assert {path.name for path in folder.iterdir()} == {"log.jsonl", "probe"}
    text, page = read(write_report(folder))
    return Trained(folder, small, held_back, text, page)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("own") / "cnn", student="small/cnn-4", teacher="small/cnn-8", size=8)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = tmp_path_factory.mktemp("own") / "vit"
    return train(place, student="small/vit-32", teacher="small/cnn-8", size=16, blocks=BLOCKS)


def figures(page: Page) -> set[str]:
    return {str(attributes["id"]) for attributes in page.all("figure")}


def test_the_loop_was_probed_when_it_said(cnn: Trained):
    steps = EPOCHS * (700 // BATCH)
    assert [record["step"] for record in cnn.probes] == [*range(0, steps, EVERY), steps]
    assert cnn.probes[0]["terms"]["feature"]["widths"] == [8, 16]


def test_its_page_has_every_part_that_its_records_have(cnn: Trained):
    check_page(cnn.text, cnn.page)
    # Of a random teacher no channel is dead, so there is nothing to draw of those.
    assert {f"{kind}-feature" for kind in CHARTS} - figures(cnn.page) <= {"dead-feature"}
    assert {"balance", "angles", "agreement", "calibration", "curve-top1", "curve-loss", "learning-rate"} <= figures(
        cnn.page
    )
    assert "equivariance" not in figures(cnn.page)
    assert "feature: linear, 8 channels to 16." in cnn.page.words
    assert "has not ended" not in cnn.page.words  # nobody said how long it would be
    for missing in ("s-recipe", "s-again", "s-samples"):
        assert missing not in {str(attributes.get("id")) for _, attributes in cnn.page.tags}


def test_its_figures_are_those_of_the_records(cnn: Trained):
    last = [record for record in tiny.records(cnn.folder) if record["kind"] == "epoch"][-1]["val"]["top1"]
    assert f"The student has {100 * last:.2f}% top-1 accuracy on the validation images" in cnn.page.words
    spectrum = cnn.probes[-1]["terms"]["feature"]["spectrum"]
    weight = torch.linalg.svdvals(torch.tensor(cnn.probes[-1]["terms"]["feature"]["spectrum"]["values"]).diag())
    assert spectrum["stable_rank"] == pytest.approx(float((weight**2).sum() / weight[0] ** 2), rel=1e-4)
    assert f"{spectrum['stable_rank']:.3g}" in cnn.page.words


def test_its_verdict_is_that_on_its_log(cnn: Trained):
    """A teacher of random weights is far off: what the rules see of it has to be on the page."""
    from limbeck.report.verdict import verdicts

    lines = (cnn.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found = verdicts([json.loads(line) for line in lines])
    for verdict in found:
        assert verdict.title in cnn.page.words
    assert found or "No problems found in" in cnn.page.words


def test_equivariance_of_a_real_vit_is_measured_and_drawn(vit: Trained):
    """The last record against the function itself, on the trained student and the same images."""
    check_page(vit.text, vit.page)
    assert "equivariance" in figures(vit.page)
    images = InputTransform(vit.student.input)(vit.held_back.images[:32])
    expected = block_equivariance(vit.student.module, images, BLOCKS)
    assert vit.probes[-1]["equivariance"] == pytest.approx(expected, rel=1e-3)
    assert all(0 < value < 3 for value in expected.values())
    assert vit.probes[0]["equivariance"] != pytest.approx(expected, rel=1e-2), "training moved nothing"
    for value in expected.values():
        assert f"{value:.3g}" in vit.page.words
