"""The published recipes: complete enough to run at full scale, and their numbers those of their sources."""

import functools
import re

import pytest
import torch
from torch import nn

from limbeck import models
from limbeck.assembly.tasks import kind_of
from limbeck.cli import main
from limbeck.models import Model
from limbeck.recipes import NAMED, Recipe, named
from limbeck.recipes.published.cifar100 import AGAIN, CRD, METHODS, PAIRS, PAPER
from limbeck.recipes.published.detection import DETECTION
from limbeck.recipes.published.segmentation import SEGMENTATION
from limbeck.studies.compare import plan
from limbeck.terms import FeatureTerm

NAMES = [name for name in NAMED if name not in {**DETECTION, **SEGMENTATION}]  # those are in the tests of their tasks

# Parameters with the classes of the recipe, and the width of the feature that it distils. [c] as in
# tests/models/test_cifar.py; [tv] torchvision's table of weights; [timm] its table of results, in millions.
MODELS = {
    "small/cnn-2": (340, 4), "small/cnn-32": (57_130, 64),
    "cifar/resnet32@10": (466_906, 64), "cifar/resnet8@10": (78_042, 64),  # c, as all of the next lines
    "cifar/wrn_40_2": (2_255_156, 128), "cifar/wrn_16_2": (703_284, 128), "cifar/wrn_40_1": (569_780, 64),
    "cifar/resnet56": (861_620, 64), "cifar/resnet110": (1_736_564, 64), "cifar/resnet20": (278_324, 64),
    "cifar/resnet32": (472_756, 64), "cifar/resnet32x4": (7_433_860, 256), "cifar/resnet8x4": (1_233_540, 256),
    "cifar/vgg13": (9_462_180, 512), "cifar/vgg8": (3_965_028, 512), "cifar/resnet50": (23_705_252, 2048),
    "cifar/mobilenetv2": (812_836, 1280), "cifar/shufflenetv1": (949_258, 960), "cifar/shufflenetv2": (1_355_528, 1024),
    "torchvision/resnet18": (11_689_512, 512), "torchvision/resnet34": (21_797_672, 512),  # tv
    "timm/resnet18": (11_689_512, 512), "timm/resnet34": (21_797_672, 512),  # tv
    "timm/resnet50.tv_in1k": (25_557_032, 2048),  # tv
    "timm/mobilenetv1_100": (4_231_976, 1024), "timm/mobilenetv2_100": (3_504_872, 1280),  # timm 4.23, 3.50
    "timm/mobilenetv3_large_100": (5_483_032, 1280), "timm/efficientnet_b0": (5_288_548, 1280),  # timm 5.48, 5.29
    "timm/regnety_160.deit_in1k": (83_590_140, 3024),  # timm 83.59
    "timm/convnext_tiny.fb_in1k": (28_589_128, 768),  # timm 28.59
    "timm/vit_small_patch16_224.augreg_in1k": (22_050_664, 384),  # timm 22.05
    "timm/deit_tiny_patch16_224": (5_717_416, 192),  # timm 5.72
    "timm/deit_small_patch16_224": (22_050_664, 384),  # timm 22.05
    # DeiT's distilled ones (timm 5.91, 22.44) with 870,144 and 1,657,152 for the stem in place of the patches' 147,648
    # and 295,296, and without the distillation token; without its head and position, of 1,000 classes.
    "deit/conv_stem_tiny_distilled": (6_633_104, 192), "deit/conv_stem_small_distilled": (23_797_520, 384),
    "deit/conv_stem_tiny": (6_439_912, 192), "deit/conv_stem_small": (23_412_136, 384),
    # Without a head of 513,000 or 193,000; DINOv2 at 518 pixels (timm 22.06) has 1,113 positions of 384 more.
    "timm/resnet18@0": (11_176_512, 512), "timm/deit_tiny_patch16_224@0": (5_524_416, 192),
    "timm/vit_small_patch14_dinov2.lvd142m@0": (21_628_800, 384),
    "timm/vit_small_patch16_dinov3.lvd1689m@0": (21_586_944, 384),  # timm 21.59
}  # fmt: skip
CLASSES = {"digits": 10, "fashion-mnist": 10, "cifar100": 100}
SIDES = {"digits": 8, "fashion-mnist": 28, "cifar100": 32}


@functools.cache
def on_meta(name: str, classes: int, size: int) -> Model:
    """A model at full size that takes no memory; shared, since several recipes have it."""
    with torch.device("meta"):
        return models.build(name, num_classes=classes, size=size)


def at_full_size(recipe: Recipe) -> tuple[Model, Model | None]:
    """Student and teacher as a run would build them on its images."""
    classes = CLASSES.get(recipe.data, 1000)
    size = recipe.size or SIDES.get(recipe.data, 224)
    assert recipe.student is not None
    kept = classes if recipe.labels or recipe.uses_logits else 0
    student = on_meta(recipe.student, kept, size)
    return student, on_meta(recipe.teacher, kept, recipe.teacher_size or size) if recipe.teacher else None


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def known(model: Model) -> tuple[int, int]:
    return MODELS.get(f"{model.name}@{model.num_classes}") or MODELS[model.name]


ONE_OF_A_KIND = (
    "digits", "cifar100-wrn-40-2-wrn-16-2", "cifar100-resnet50-mobilenetv2", "imagenet-resnet34-resnet18",
    "imagenet-deit-ti", "imagenet20-resnet50-resnet18", "label-free-dinov2-resnet18",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in ONE_OF_A_KIND else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_a_recipe_is_whole_at_full_size(name: str) -> None:
    """Both models run at their size, with the literature's counts; the projector joins the widths that it says."""
    recipe = named(name)
    student, teacher = at_full_size(recipe)
    for model in (student, teacher):
        assert model is None or count(model.module) == known(model)[0]
    # Its own parts have memory: a projector is small.
    distiller = kind_of(recipe.task).build_distiller(recipe, student, teacher, None)
    if isinstance(term := distiller.terms["feature"] if recipe.uses_features else None, FeatureTerm):
        assert teacher is not None
        assert term.projector(torch.empty(2, known(student)[1])).shape == (2, known(teacher)[1])
    wanted = {"feature": recipe.uses_features, "logit": recipe.has_logit_term}
    wanted |= {f"feature{stage}": recipe.uses_stages for stage in range(1, 5 if "timm" in str(recipe.student) else 4)}
    assert set(distiller.terms) == {term for term, used in wanted.items() if used}


def test_every_pair_of_both_tables_is_there() -> None:
    """The ten of the paper's table 5 and the three more of the CRD protocol, in one table."""
    assert len(PAIRS) == 13
    assert sum(pair.paper is not None for pair in PAIRS) == 10
    assert len({pair.name for pair in PAIRS}) == 13
    for pair in PAIRS:
        assert len(pair.crd) == len(CRD)
        assert pair.paper is None or (len(pair.paper), len(pair.again)) == (len(PAPER), len(AGAIN))
        slow = pair.student in ("mobilenetv2", "shufflenetv1", "shufflenetv2")
        recipe = named(pair.name)
        assert (recipe.lr, recipe.teacher_lr) == ((0.01, 0.05) if slow else (0.05, None))


def test_the_papers_means_of_table_5() -> None:
    """Planted against slips: the means over the paper's columns, taken from its table by hand."""
    rows = [pair.paper for pair in PAIRS if pair.paper is not None]
    means = [sum(row[at] for row in rows) / len(rows) for at in range(len(PAPER))]
    assert [round(mean, 3) for mean in means] == [77.529, 70.494, 72.433, 73.222, 73.351, 73.951, 75.583]
    again = [pair.again for pair in PAIRS if pair.paper is not None]
    assert [round(sum(row[at] for row in again) / 10, 3) for at in range(4)] == [75.026, 75.885, 75.916, 76.532]


@pytest.mark.parametrize("name", [pair.name for pair in PAIRS])
def test_every_method_of_the_tables_can_be_compared(name: str) -> None:
    """The command of the record plans a run for each method; baselines have their published weights."""
    runs = plan(named(name), METHODS.split(), [0])  # pyright: ignore[reportArgumentType]
    assert [run.method for run in runs.values()] == METHODS.split()
    assert all(run.rival_weight is None for run in runs.values())
    rising = {run.method for run in runs.values() if run.rival_warmup == 20}
    assert rising == {"review", "dkd", "projector+dkd"}  # the others do not read it


@pytest.mark.parametrize("name", ["digits", PAIRS[0].name, "imagenet20-resnet50-resnet18"])
def test_the_command_of_a_record_is_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its words are understood: only what is added to it is refused."""
    (command,) = re.findall(r"Command: (limbeck .*)", NAMED[name].__doc__ or "")
    assert main([*command.replace("FOLDER", "images").split()[1:], "--epochs", "0"]) == 2
    assert "epochs: expected a whole number from 1 to 1,000,000,000" in capsys.readouterr().err


def test_records_fit_a_wide_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        assert main(["recipes", name]) == 0
        comment = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
        assert max(map(len, comment)) <= 150
