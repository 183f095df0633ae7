"""Segmentation recipes: the same commands train, distil, score, resume and export; misfits are reported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck.data.stream import Stream
from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.recipes.published import named
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.validation import SEGMENTATION_METHODS
from limbeck.report import write_report
from limbeck.runs.export import export
from limbeck.runs.inspection import evaluate
from limbeck.runs.run import run
from limbeck.segmentation import PixelTerm, Segmentation
from limbeck.segmentation.assembly import build_segmentation_distiller
from limbeck.segmentation.models import build_segmenter, stage_taps
from limbeck.terms import FeatureTerm
from report.planted import EVIL, check_page, read
from segmentation import masks

LRASPP = "torchvision/lraspp_mobilenet_v3_small"
HALVES = (slice(0, 3), slice(3, 4))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that a tiny net learns in two seconds."""
    return Recipe(
        task="segmentation",
        student="small/fcn-4s-8",
        data=str(masks.write(tmp_path_factory.mktemp("masks") / "data")),
        size=32,
        scales=(0.9, 1.2),
        method="alone",
        epochs=6,
        batch_size=8,
        optimizer="adamw",
        lr=0.01,
        precision="float32",
        memory_format="contiguous",
        compile="off",
        workers=1,
    )


@pytest.fixture(scope="session")
def teacher(alone: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that was trained alone."""
    folder = tmp_path_factory.mktemp("trained") / "teacher"
    run(alone, folder)
    return folder


def taught(alone: Recipe, weights: Path, /, **changes: Any) -> Recipe:
    given = {"teacher": alone.student, "teacher_weights": str(weights), "student": "small/fcn-8s-4"}
    return alone.changed({**given, "method": "stages+kd", "epochs": 2, **changes})


def test_a_model_learns_and_its_folder_says_so(teacher: Path):
    summary = json.loads((teacher / "summary.json").read_text())
    assert summary["metric"] == "miou"
    assert summary["last"]["miou"] > 0.5
    assert evaluate(teacher) == pytest.approx(summary["last"], abs=1e-9)
    data = str(Recipe.from_yaml(teacher / "recipe.yaml").data)
    said: list[object] = []
    assert evaluate(teacher, data=data, say=said.append) == pytest.approx(summary["last"], abs=1e-9)
    assert said[0] == "images: 6 of data"
    with pytest.raises(UserError, match=r"^--labels x\.csv: for image classes; masks come with --data"):
        evaluate(teacher, data=data, label_file="x.csv")
    card = json.loads((teacher / "student.json").read_text())
    assert (card["task"], tuple(card["classes"]), card["input"]["size"]) == ("segmentation", masks.CLASSES, 32)
    plain = build_segmenter(card["model"], num_classes=card["num_classes"]).module
    plain.load_state_dict(load_file(teacher / "student.safetensors"), strict=True)
    found = json.loads((teacher / "masks.json").read_text())
    iou = found["models"]["student"]["iou"]
    assert sum(iou) / 3 == pytest.approx(summary["last"]["miou"], abs=1e-9)
    counts = torch.tensor(found["models"]["student"]["confusion"])
    assert counts.sum() == 6 * masks.HEIGHT * (masks.WIDTH - 2)


def test_the_page_shows_classes_and_masks(alone: Recipe, teacher: Path, tmp_path: Path):
    """What is recorded of a run is on its page; what is damaged or hostile is left out or escaped."""
    run(taught(alone, teacher, method="kd", epochs=1, train_limit=8), tmp_path / "run")
    text, page = read(write_report(tmp_path / "run"))
    check_page(text, page)
    assert {attributes.get("id") for attributes in page.all("figure")} >= {"classes-iou", "classes-confusion"}
    assert len(page.all("image")) == 3 * 6
    assert all(f"color of {name} {name}" in page.words for name in masks.CLASSES)
    assert "Validation images on which the teacher is furthest ahead." in page.words
    kept = json.loads((tmp_path / "run" / "masks.json").read_text())
    kept["classes"][0] = EVIL
    kept["colors"][1] = [f'0"/>{EVIL}', 0, 0]
    kept["images"][0]["panels"]["student"] = EVIL
    kept["images"][1]["width"] = "1e9"
    kept["models"]["teacher"] = []
    (tmp_path / "run" / "masks.json").write_text(json.dumps(kept))
    text, page = read(write_report(tmp_path / "run"))
    check_page(text, page)
    assert len(page.all("image")) == 2 + 3 * 4


def test_a_student_of_another_stride_is_resumed_to_the_same_bytes_and_exported(
    alone: Recipe, teacher: Path, tmp_path: Path
):
    before = (teacher / "student.safetensors").read_bytes()
    recipe = taught(alone, teacher)
    summary = run(recipe, tmp_path / "whole")
    assert summary["teacher"]["miou"] > 0.5
    assert (teacher / "student.safetensors").read_bytes() == before
    stopped = tmp_path / "stopped"
    plain = Stream.iterate

    def stopping(self: Stream[Any, Any], start: int = 0) -> Any:
        if self.order.training and self._epoch == 1:
            raise KeyboardInterrupt
        return plain(self, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "iterate", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, stopped)
    run(recipe, stopped, resume=True)
    for name in ("student.safetensors", "terms.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (stopped / name).read_bytes()
    pytest.importorskip("onnxruntime")
    import onnxruntime

    exported = export(stopped, format="onnx")
    assert exported.parity < 1e-4
    images = torch.rand(2, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    module = build_segmenter("small/fcn-8s-4", num_classes=3).module.eval()
    module.load_state_dict(load_file(stopped / "student.safetensors"))
    with torch.no_grad():
        expected = torch.nn.functional.interpolate(module(images), size=(32, 32), mode="bilinear")
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.9999


@pytest.mark.parametrize(
    ("method", "student"),
    [*((method, "small/fcn-8s-4") for method in SEGMENTATION_METHODS[1:]), ("stages+kd", LRASPP)],
)
def test_every_method_has_its_terms_and_their_gradients(method: str, student: str, alone: Recipe):
    """Between models of other strides and widths; every parameter of the terms is reached."""
    recipe = taught(alone, Path("unread"), method=method, student=student)
    distiller = built(recipe)
    result = distiller(masks.batch(2))
    result.loss.backward()
    assert len(distiller.terms) >= 1
    for name, parameter in distiller.trainable_parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    kinds = {type(term) for term in distiller.terms.values()}
    assert (FeatureTerm in kinds) == recipe.uses_features
    assert (PixelTerm in kinds) == recipe.has_logit_term


def test_the_named_recipe_is_whole():
    """Both models are built, and every stage of them meets on a grid."""
    recipe = named("camvid")
    distiller = built(recipe)
    assert list(distiller.terms) == ["feature", "feature1", "feature2", "feature3", "logit"]


def built(recipe: Recipe) -> Distiller:
    torch.manual_seed(0)
    student, teacher = (build_segmenter(str(name), num_classes=3, size=32) for name in (recipe.student, recipe.teacher))
    return build_segmentation_distiller(recipe, student, teacher).train()


def test_accumulated_batches_count_as_one(alone: Recipe):
    """The terms see all rows, and so does the task where no place is void."""
    from limbeck.training.accumulation import Accumulation

    batch = masks.batch(4)
    batch = batch._replace(masks=batch.masks.clamp_max(2))
    halves = [batch._replace(**{k: getattr(batch, k)[at] for k in ("images", "masks", "index")}) for at in HALVES]
    distiller = built(taught(alone, Path("unread"), method="projector+kd"))
    distiller.student.eval()  # its batch norms would see the halves
    accumulate = Accumulation(distiller, distiller, torch.amp.GradScaler("cpu", enabled=False))
    accumulate(halves)
    found = {name: p.grad.clone() for name, p in distiller.trainable_parameters().items() if p.grad is not None}
    distiller.zero_grad(set_to_none=True)
    distiller(batch).loss.backward()
    for name, parameter in distiller.trainable_parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_models_of_users_and_of_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A dict of logits is read by its "out"; what gives no logits of places is told; a trunk's weights are found."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, k):\n"
        "        super().__init__()\n"
        "        self.body = nn.Conv2d(3, 8, 3, stride=4, padding=1)\n"
        "        self.last = nn.Conv2d(8, k, 1)\n"
        "    def forward(self, x):\n"
        "        return {'out': self.last(self.body(x).relu())}\n"
        "def net(num_classes):\n"
        "    return Net(num_classes)\n"
        "def vectors(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    model = build_segmenter("mine:net", num_classes=3, size=32)
    assert model.penultimate == "last:input"
    assert Segmentation().loss(model.module(torch.rand(2, 3, 32, 32)), masks.batch(2)).isfinite()
    with pytest.raises(UserError, match=r"mine:vectors returns \(2, 3\) for 2 images: expected logits \(2, 3, height"):
        build_segmenter("mine:vectors", num_classes=3, size=32)
    with pytest.raises(UserError, match='"timm/resnet18" is no segmentation model: expected torchvision/NAME'):
        build_segmenter("timm/resnet18", num_classes=3)
    with pytest.raises(UserError, match=r'unknown model "torchvision/fcn_resnet5": did you mean|unknown model'):
        build_segmenter("torchvision/fcn_resnet5", num_classes=3)
    from torchvision.models import mobilenet_v3_small

    trunk = mobilenet_v3_small(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "trunk.pt")
    model = build_segmenter(LRASPP, num_classes=3, size=32, weights=tmp_path / "trunk.pt", allow_new_head=True)
    assert model.new_head
    assert torch.equal(model.module.state_dict()["backbone.3.block.0.0.weight"], trunk.features[3].block[0][0].weight)  # pyright: ignore
    assert stage_taps(model) == ("backbone.1", "backbone.3", "backbone.11")


def test_an_encoder_of_timm_in_an_architecture_of_smp():
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    model = build_segmenter("smp/unet/mobilenetv3_small_050", num_classes=3, size=64)
    assert model.penultimate == "segmentation_head.0:input"
    assert len(stage_taps(model)) == 4
    assert model.module(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


REFUSED = [
    ({"method": "dkd", "teacher": "small/fcn-4s-8"}, "^method: for segmentation expected one of alone, kd, "),
    ({"augmentation": "strong"}, "^augmentation: for segmentation expected none or standard, got strong"),
    ({"student": "fcos/timm/resnet18"}, "^task: student 'fcos/timm/resnet18' is a detector; expected task detection"),
    ({"task": "classification"}, "^(scales|void|shorter): nothing reads it with task classification"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_does_not_fit_the_task(changes: dict[str, Any], message: str, alone: Recipe):
    with pytest.raises(UserError, match=message):
        Recipe(**{**alone.model_dump(exclude={"classes"}), **changes})
