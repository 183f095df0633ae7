"""Detection recipes: the same commands train, distil, score and resume detectors; what does not fit is told."""

import base64
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from detection import boxes
from limbeck import cli
from limbeck.assembly.build import build_data, build_parts, load_student
from limbeck.data.stream import Stream
from limbeck.detection import DenseHeadTerm, Detections, FGDTerm, ForegroundTerm, RegionTerm, Truth
from limbeck.detection.assembly import build_detection_distiller, paired_levels
from limbeck.detection.boxes import choose, judge
from limbeck.detection.models import build_detector
from limbeck.errors import UserError
from limbeck.models import Normalization
from limbeck.recipes.published import named
from limbeck.recipes.published.detection import DETECTION
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.validation import DETECTION_METHODS
from limbeck.rivals import ReviewTerm
from limbeck.runs.export import export
from limbeck.runs.inspection import check, describe, evaluate
from limbeck.runs.run import run
from limbeck.storage.files import load_weights
from limbeck.terms import FeatureTerm
from limbeck.training.optim import check_gradients


@pytest.fixture(scope="session")
def teacher(alone: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector that was trained alone."""
    folder = tmp_path_factory.mktemp("boxes") / "teacher"
    run(alone, folder)
    return folder


def taught(alone: Recipe, weights: Path, /, **changes: Any) -> Recipe:
    return alone.changed(
        {"teacher": alone.student, "teacher_weights": str(weights), "method": "projector", "epochs": 1, **changes}
    )


def test_a_detector_learns_and_its_folder_says_so(teacher: Path):
    summary = json.loads((teacher / "summary.json").read_text())
    assert summary["metric"] == "ap"
    assert summary["last"]["ap50"] > 0.3
    with pytest.raises(UserError, match=r"^--labels x\.csv: for image classes; boxes come with --data"):
        evaluate(teacher, data=str(Recipe.from_yaml(teacher / "recipe.yaml").data), label_file="x.csv")
    assert summary["best"]["ap"] >= summary["last"]["ap"]
    assert (teacher / "student_best.safetensors").is_file()
    assert evaluate(teacher) == pytest.approx(summary["last"], abs=1e-9)
    others: list[object] = []
    assert evaluate(teacher, data=str(Recipe.from_yaml(teacher / "recipe.yaml").data), say=others.append)["ap50"] > 0.3
    assert others[0] == f"images: {summary['data']['val']} of {summary['data']['name']}"
    card = json.loads((teacher / "student.json").read_text())
    assert (card["task"], card["classes"], card["input"]["size"]) == ("detection", ["red", "green"], 64)
    plain = build_detector(card["model"], num_classes=card["num_classes"]).module
    plain.load_state_dict(load_file(teacher / "student.safetensors"), strict=True)


@pytest.mark.parametrize("method", [method for method in DETECTION_METHODS if method != "alone"])
def test_every_method_takes_a_step_and_leaves_the_teacher_alone(alone: Recipe, method: str):
    distiller = built(alone.changed({"teacher": alone.student, "method": method})).train()
    before = copy.deepcopy(distiller.teacher.state_dict())
    result = distiller(boxes.batch(4))
    result.loss.backward()
    check_gradients(distiller)
    assert len(result.parts) >= 2
    assert all(part.isfinite() for part in result.parts.values())
    assert all(torch.equal(before[name], value) for name, value in distiller.teacher.state_dict().items())


def test_what_is_found_is_kept_for_the_report(alone: Recipe, teacher: Path, tmp_path: Path):
    """The figures of the whole set, and boxes that lie on the rectangles of the images they are drawn on."""
    weights = (teacher / "student.safetensors").read_bytes()
    summary = run(taught(alone, teacher, method="kd", epochs=2), tmp_path / "run")
    assert summary["teacher"]["ap50"] > 0.3
    assert (teacher / "student.safetensors").read_bytes() == weights
    boxes = json.loads((tmp_path / "run" / "boxes.json").read_text())
    assert boxes["classes"] == ["red", "green"]
    for who, figures in (("student", summary["last"]), ("teacher", summary["teacher"])):
        model = boxes["models"][who]
        assert model["figures"] == pytest.approx(figures, abs=1e-9)
        assert np.mean(model["classes"]) == pytest.approx(figures["ap"], abs=1e-6)
        assert np.mean(model["curves"]["0.50"]) == pytest.approx(figures["ap50"], abs=1e-6)
        assert 0 < model["cut"] <= 1
    assert len({image["index"] for image in boxes["images"]}) == len(boxes["images"]) > 2
    truth = boxes_of_colors(boxes["images"])
    assert truth > 0.95
    right = [box for image in boxes["images"] for box in image["teacher"] if box["right"]]
    assert len(right) > 3
    assert all(box["score"] >= boxes["models"]["teacher"]["cut"] - 1e-4 for box in right)
    quiet = taught(alone, teacher, train_limit=8, probe="off")
    run(quiet, tmp_path / "quiet")
    assert not (tmp_path / "quiet" / "boxes.json").exists()


def boxes_of_colors(images: list[dict[str, Any]]) -> float:
    """Share of the pixels of the boxes that have the color of their class."""
    shares = []
    for image in images:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["jpeg"]))), np.int64)
        assert pixels.shape == (image["height"], image["width"], 3)
        for entry in image["truth"]:
            left, top, right, bottom = (round(side) for side in entry["box"])
            inside = pixels[top:bottom, left:right]
            shares.append((inside[:, :, entry["label"]] > inside.min(-1) + 60).mean())
    return float(np.mean(shares))


def test_images_are_chosen_for_what_they_show():
    """One object each: found by both, by none, by the student, by the teacher, by both with one box too many."""
    images = torch.arange(5)
    square = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).double().repeat(5, 1)
    there = Truth(images, images, square, torch.zeros(5).long(), torch.zeros(5).bool(), torch.full((5,), 100.0))

    def found(*rows: int) -> Any:
        image = torch.tensor(rows)
        boxes = Detections(image, square[image], torch.full((len(rows),), 0.9), torch.zeros(len(rows)).long())
        return judge(there, boxes, 1)

    chosen = choose(there, {"student": found(0, 2, 4, 4), "teacher": found(0, 3, 4)})
    assert chosen == [("missed", 3), ("gained", 2), ("neither", 1), ("both", 0)]
    assert choose(there, {"student": found(0, 2, 3)}) == [
        ("neither", 1),
        ("neither", 4),
        ("both", 0),
        ("both", 2),
        ("both", 3),
    ]


def test_a_run_that_is_resumed_ends_with_the_same_bytes(alone: Recipe, teacher: Path, tmp_path: Path):
    recipe = taught(alone, teacher, train_limit=16, epochs=2, augmentation="standard")
    run(recipe, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _run_until_second_epoch(recipe, stopped)
    run(recipe, stopped, resume=True)
    for name in ("student.safetensors", "terms.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (stopped / name).read_bytes()


def _run_until_second_epoch(recipe: Recipe, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plain = Stream.iterate

        def stopping(self: Stream[Any, Any], start: int = 0) -> Any:
            if self.order.training and self._epoch == 1:
                raise KeyboardInterrupt
            return plain(self, start)

        patch.setattr(Stream, "iterate", stopping)
        run(recipe, folder)


def built(recipe: Recipe) -> Any:
    student, teacher = (
        build_detector(name, num_classes=2, size=64) for name in (str(recipe.student), str(recipe.teacher))
    )
    return build_detection_distiller(recipe, student, teacher)


def test_levels_are_paired_by_stride(alone: Recipe, teacher: Path):
    """A student whose finest level is coarser shares the others."""
    recipe = taught(alone, teacher, student="fcos-32/timm/resnet18", teacher="fcos-64/cifar/resnet8")
    distiller = built(recipe)
    assert list(distiller.terms) == ["feature-s8", "feature-s16"]
    assert [term.student_taps[0] for term in distiller.terms.values()] == [
        "backbone.fpn.layer_blocks.0",
        "backbone.fpn.layer_blocks.1",
    ]
    assert [term.teacher_taps[0] for term in distiller.terms.values()] == [
        "backbone.fpn.extra_blocks.p6",
        "backbone.fpn.extra_blocks.p7",
    ]
    assert distiller.weights["feature-s8"] == recipe.full_feature_weight / 2
    trunk = built(recipe.changed({"levels": "trunk", "teacher": "fcos-64/timm/resnet18"}))
    assert [term.student_taps[0] for term in trunk.terms.values()] == [f"backbone.body.layer{n}" for n in (2, 3, 4)]


def test_the_recipechooses_the_terms(alone: Recipe, teacher: Path):
    def kinds(**changes: Any) -> set[type]:
        return {type(term) for term in built(taught(alone, teacher, **changes)).terms.values()}

    assert kinds() == {FeatureTerm}
    assert kinds(background=0.5) == {ForegroundTerm}
    assert kinds(method="kd") == {DenseHeadTerm}
    assert kinds(method="projector+kd") == {FeatureTerm, DenseHeadTerm}
    assert kinds(method="fgd") == {FGDTerm}
    assert kinds(method="review") == {ReviewTerm}
    two = {"student": "fasterrcnn-32/cifar/resnet8", "teacher": "fasterrcnn-32/cifar/resnet8"}
    assert kinds(method="kd", **two) == {RegionTerm}
    pkd = built(taught(alone, teacher, method="pkd"))
    batch = boxes.batch(2)
    student, other = pkd.capture(batch)
    term = pkd.terms["pkd-s4"]
    c = torch.stack(
        [
            torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
            for a, b in zip(
                student.features[term.student_taps[0]].transpose(0, 1),
                other.features[term.teacher_taps[0]].transpose(0, 1),
                strict=True,
            )
        ]
    )
    torch.testing.assert_close(term(student, other), 2 * (1 - c).mean(), atol=2e-3, rtol=2e-3)


def test_named_taps_have_to_be_levels_of_one_stride(alone: Recipe, teacher: Path):
    taps = {"student_tap": "backbone.fpn.layer_blocks.0", "teacher_tap": "backbone.fpn.extra_blocks.p6"}
    with pytest.raises(UserError, match=r"has stride 4, .* 8; expected equal strides"):
        built(taught(alone, teacher, **taps))
    with pytest.raises(UserError, match='student_tap "fc" is no level of the detector'):
        built(taught(alone, teacher, **{**taps, "student_tap": "fc"}))
    distiller = built(taught(alone, teacher, **{**taps, "teacher_tap": taps["student_tap"]}))
    assert list(distiller.terms) == ["feature-s4"]


def test_models_without_a_common_stride_are_refused(alone: Recipe, teacher: Path):
    recipe = taught(alone, teacher, levels="trunk", student="fcos-32/timm/resnet18")
    with pytest.raises(UserError, match=r"the student's stages have strides 8 16 32, the teacher's 4: none in common"):
        built(recipe)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "classification"}, "task: student 'fcos-32/cifar/resnet8' is a detector; expected task detection"),
        ({"student": "cifar/resnet8"}, "student: expected a detector, ARCHITECTURE/FAMILY/MODEL"),
        ({"method": "crd"}, "method: for detection expected one of alone, kd, projector"),
        ({"augmentation": "strong"}, "augmentation: for detection expected none or standard"),
        ({"augmentation": "randaugment"}, "augmentation: for detection expected none or standard, got randaugment"),
        ({"teacher_size": 32}, "teacher_size: nothing reads it with task detection, got 32"),
        ({"cache_views": 2}, "cache_views: nothing reads it with task detection"),
        ({"label_smoothing": 0.1}, "label_smoothing: nothing reads it with task detection"),
        ({"labels": False}, "labels: nothing reads it with task detection"),
        ({"logit_loss": "dist"}, "logit_loss: nothing reads it with task detection"),
        ({"student_tap": "backbone.fpn.layer_blocks.0"}, "student_tap: for detection give both taps or none"),
        ({"scales": [0.5]}, "scales: expected a smallest and a largest factor, got 0.5"),
        ({"longest": 32}, "longest: expected at least size, the shorter side, got 32 and size 64"),
        ({"accumulate": 2}, "accumulate: with a teacher, detection takes one batch a step"),
        ({"method": "review", "background": 0.5}, "background: nothing reads it with method review"),
    ],
)
def test_settings_that_do_not_fit_are_told(alone: Recipe, teacher: Path, changes: dict[str, Any], said: str):
    with pytest.raises(UserError) as refused:
        taught(alone, teacher, **changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"longest": 100}, "longest: nothing reads it with task classification, got 100"),
        ({"classes": ["a"]}, "classes: nothing reads it with task classification"),
        ({"method": "pkd", "teacher": "small/cnn-4"}, "method: pkd compares the pyramids of detectors"),
    ],
)
def test_settings_of_detection_are_told_elsewhere(changes: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Recipe(**{"data": "digits", "student": "small/cnn-2", "method": "alone", **changes})


def test_heads_that_cannot_be_compared_are_told(alone: Recipe, teacher: Path):
    with pytest.raises(UserError, match=r"cannot be compared; expected two Faster R-CNNs, or two of RetinaNet or FCOS"):
        built(taught(alone, teacher, method="kd", teacher="fasterrcnn-32/cifar/resnet8"))
    with pytest.raises(UserError, match=r"expected equal levels and anchors"):
        built(taught(alone, teacher, method="kd", teacher="fcos-32/timm/resnet18"))
    with pytest.raises(UserError, match=r"temperature: the heads of fcos-32/cifar/resnet8 have no softmax, got 2"):
        built(taught(alone, teacher, method="kd", temperature=2.0))


def test_the_dry_run_and_the_doctor_know_detectors(alone: Recipe, teacher: Path, tmp_path: Path):
    recipe = taught(alone, teacher, method="projector")
    lines = dict(describe(recipe))
    assert "fcos-32/cifar/resnet8" in lines["student"]
    assert lines["steps"] == "4 an epoch, 4 in all"
    findings = {finding.name: finding for finding in check(recipe, tmp_path / "run")}
    assert findings["teacher accuracy"].level == "ok"
    assert "AP50" in findings["teacher accuracy"].message
    assert 'of stride 4, 32 channels, to "backbone.fpn.layer_blocks.0"' in findings["shapes of feature-s4"].message
    assert findings["form of feature-s4"].message.startswith("moments")


def test_a_teacher_that_finds_nothing_is_refused(alone: Recipe, tmp_path: Path):
    run(alone.changed({"epochs": 1, "train_limit": 8, "lr": 1e-6}), tmp_path / "untrained")
    with pytest.raises(UserError, match='it finds nothing; Limbeck trained it, as "untrained": train it for longer'):
        run(taught(alone, tmp_path / "untrained"), tmp_path / "run")


def test_the_commands(alone: Recipe, teacher: Path, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "alone.yaml").write_text(alone.to_yaml(), encoding="utf-8")
    assert cli.main(["evaluate", str(teacher)]) == 0
    assert "ap50: " in capsys.readouterr().out
    words = ["train", "--recipe", str(tmp_path / "alone.yaml"), "--epochs", "1", "--out", str(tmp_path / "trained")]
    assert cli.main([*words, "--train-limit", "8"]) == 0
    said = capsys.readouterr().out
    assert "ap: last" in said
    assert (tmp_path / "trained" / "report.html").is_file()
    assert "average precision" in (tmp_path / "trained" / "report.html").read_text()
    words = ["compare", "--recipe", str(tmp_path / "alone.yaml"), "--teacher", str(alone.student)]
    words += ["--teacher-weights", str(teacher), "--methods", "alone", "pkd", "--seeds", "1", "--epochs", "1"]
    assert cli.main([*words, "--train-limit", "8", "--out", str(tmp_path / "compared")]) == 0
    said = capsys.readouterr().out
    assert "ap in % on the validation images" in said
    result = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert result["metric"] == "ap"


def test_faults_in_annotations_stop_a_run_with_their_list(
    alone: Recipe, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = json.loads((colored / "boxes-train.json").read_text())
    content["annotations"][0]["bbox"][2] = -4
    content["annotations"][1]["category_id"] = 9
    (colored / "broken.json").write_text(json.dumps(content), encoding="utf-8")
    words = ["train", "--task", "detection", "--model", str(alone.student), "--data", f"coco:{colored / 'broken.json'}"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "2 faults in the annotations (--on-bad-annotations skip leaves them out)" in said
    assert "box with negative width or height: 1 (annotation 0 of train00.png" in said
    assert "unknown category: 1 (annotation 1: category 9)" in said
    assert not (tmp_path / "run").exists()


def test_a_trunk_that_was_a_classifier_starts_a_detector(alone: Recipe, tmp_path: Path):
    from limbeck import models
    from limbeck.storage.files import save_weights

    classifier = models.build("cifar/resnet8", num_classes=7).module
    save_weights(classifier.state_dict(), tmp_path / "classifier.safetensors")
    recipe = alone.changed({"student_weights": str(tmp_path / "classifier.safetensors"), "frozen_norms": True})
    parts = build_parts(recipe, build_data(recipe), None)
    weights = load_weights(tmp_path / "classifier.safetensors")
    state = parts.student.module.state_dict()
    assert torch.equal(state["backbone.body.model.bn1.weight"], weights["bn1.weight"])
    assert not [name for name in parts.distiller.trainable_parameters() if ".bn" in name]


def test_pairs_of_a_detector_with_itself_are_all_of_its_levels(alone: Recipe):
    model = build_detector("fasterrcnn-32/timm/resnet18", num_classes=2).module
    assert [a.stride for a, _ in paired_levels(alone, model, model)] == [4, 8, 16, 32]


@pytest.mark.parametrize("format", ["safetensors", pytest.param("torch-export", marks=pytest.mark.long), "onnx"])
def test_an_exported_detector_gives_the_same_boxes_without_limbeck(
    teacher: Path, colored: Path, tmp_path: Path, format: str
):
    """On real images of the data, behind the same non-maximum suppression, to 1e-4."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    ending = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}[format]
    written = export(teacher, format=format, out=tmp_path / f"student{ending}")  # pyright: ignore[reportArgumentType]
    assert written.parity < 1e-4
    if format == "safetensors":
        return
    assert "boxes (pixels of the input) and scores of every place" in written.note
    student = load_student(teacher)
    student.module.eval()
    batch = next(iter(build_data(Recipe.from_yaml(teacher / "recipe.yaml")).val_loader(batch_size=5)))
    images = Normalization(student.input)(batch.images)
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
        found, scores = (torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()}))
    else:
        found, scores = torch.export.load(written.path).module()(images)
    with torch.no_grad():
        expected = student.module.detect(student.module(images), batch.sizes, (64, 64))
    for one, places, judged in zip(expected, found, scores, strict=True):
        assert len(one["boxes"]) > 0
        place, label = (judged > 0.05).nonzero(as_tuple=True)
        kept = torchvision.ops.batched_nms(places[place].clamp(0, 64), judged[place, label], label, 0.6)[:100]
        torch.testing.assert_close(places[place][kept].clamp(0, 64), one["boxes"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(judged[place, label][kept], one["scores"], atol=1e-4, rtol=1e-4)


def test_a_two_stage_detector_is_handed_on_as_weights_alone(alone: Recipe, tmp_path: Path):
    run(alone.changed({"student": "fasterrcnn-32/cifar/resnet8", "epochs": 1, "train_limit": 8}), tmp_path / "run")
    with pytest.raises(UserError, match=r"has two stages, which onnx does not hold; use --format safetensors"):
        export(tmp_path / "run", format="onnx")
    assert export(tmp_path / "run", format="safetensors").parity == 0.0


@pytest.mark.parametrize("name", DETECTION)
def test_the_named_recipes_are_built_with_their_models(name: str):
    """At their widths, with classes of COCO; the schedule is that of ReviewKD in epochs."""
    recipe = named(name)
    student, teacher = (
        build_detector(model, num_classes=80, size=recipe.size) for model in (str(recipe.student), str(recipe.teacher))
    )
    distiller = build_detection_distiller(recipe, student, teacher)
    strides = [int(term.removeprefix("feature-s")) for term in distiller.terms]
    assert strides == ([4, 8, 16] if name == "small-boxes" else [4, 8, 16, 32])
    if name != "small-boxes":
        assert {term.projector.weight.shape for term in distiller.terms.values()} == {(256, 256)}
        steps = 118_287 // recipe.batch_size * recipe.epochs
        assert steps == pytest.approx(180_000, rel=0.02)
        assert [mark / recipe.epochs for mark in recipe.milestones] == pytest.approx([2 / 3, 8 / 9], abs=1e-3)
        assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.size, recipe.longest) == (
            0.01,
            1e-4,
            8,
            800,
            1333,
        )
