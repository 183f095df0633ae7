"""What a recipe can name is built, trains, and is weighted as published."""

import math
from typing import Any, get_args

import pytest
import torch

from limbeck import losses
from limbeck.assembly.build import build_data, build_parts
from limbeck.assembly.caching import build_reduction
from limbeck.assembly.rivals import WEIGHTS, build_rival_terms
from limbeck.assembly.tasks import Parts
from limbeck.data import Data
from limbeck.errors import UserError
from limbeck.models import InputSpec, Model, build
from limbeck.recipes.recipe import DEFAULTS, Recipe, without_unread
from limbeck.recipes.values import FeatureLoss, LogitLoss, Norm, Projector, Rival
from limbeck.terms import FeatureTerm
from limbeck.training.optim import check_gradients

GAUSSIAN = "gaussian_wasserstein"
RIVALS = [rival for rival in get_args(Rival) if rival not in ("fgd", "pkd", "cwd")]  # of other tasks


@pytest.fixture(scope="module")
def data() -> Data:
    return build_data(recipe())


@pytest.fixture(scope="module")
def teacher() -> Model:
    torch.manual_seed(1)
    return build("cifar/resnet14", num_classes=10, size=8)


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {"teacher": "cifar/resnet14", "student": "cifar/resnet8", "data": "digits", "batch_size": 16}
    return Recipe(**without_unread({**DEFAULTS, **base, **changes}, given=()))


def step(parts: Parts) -> dict[str, float]:
    """Two steps; the unweighted parts of the second."""
    subject = parts.distiller.train()
    optimizer = torch.optim.SGD(subject.trainable_parameters().values(), lr=0.01)
    found: dict[str, float] = {}
    for _, batch in zip(range(2), parts.data.train_loader(batch_size=16, seed=0), strict=False):
        result = subject(batch)
        optimizer.zero_grad()
        result.loss.backward()
        check_gradients(subject)
        optimizer.step()
        found = {name: float(part) for name, part in result.parts.items()}
    assert all(torch.isfinite(p).all() for p in subject.trainable_parameters().values())
    return found


@pytest.mark.parametrize("rival", RIVALS)
def test_every_rival_trains(rival: str, data: Data, teacher: Model) -> None:
    parts = build_parts(recipe(method=rival), data, teacher)
    names = list(parts.distiller.terms)
    assert names
    assert all(name.rstrip("0123456789") == rival for name in names)
    assert {parts.distiller.weights[name] for name in names} == {WEIGHTS.get(rival, 1.0)}
    values = step(parts)
    assert values.keys() == {"task", *names}
    assert all(value == value and abs(value) < 1e6 for value in values.values())


def test_the_feature_loss_goes_with_dkd(data: Data, teacher: Model) -> None:
    parts = build_parts(recipe(method="projector+dkd"), data, teacher)
    assert parts.distiller.weights == {"task": 1.0, "feature": 2.0, "dkd": 1.0}
    assert step(parts).keys() == {"task", "feature", "dkd"}


def test_dkd_and_dist_are_the_losses_with_the_recipes_settings(data: Data, teacher: Model) -> None:
    batch = next(iter(data.train_loader(batch_size=16, seed=0)))
    expected = {
        "dkd": lambda y_s, y_t: losses.decoupled_kl(y_s, y_t, batch.target, temperature=2.0, beta=3.0),
        "dist": lambda y_s, y_t: losses.pearson_distance(y_s, y_t, temperature=2.0),
    }
    for method, loss in expected.items():
        subject = build_parts(recipe(method=method, temperature=2.0, dkd_beta=3.0), data, teacher).distiller.eval()
        student, taught = subject.capture(batch)
        assert taught is not None
        torch.testing.assert_close(subject(batch).parts[method], loss(student.output, taught.output))


@pytest.mark.parametrize("method", ["dkd", "review", "projector+dkd"])
def test_a_weight_rises_as_its_authors_let_it(method: str, data: Data, teacher: Model) -> None:
    """Epoch e of 240, counted from 1, has min(e / 20, 1) of it, all steps of an epoch alike."""
    changes = {"epochs": 240, "rival_warmup": 20, "review_weight": 5.0}
    subject = build_parts(recipe(method=method, **changes), data, teacher).distiller
    whole = 5.0 if method == "review" else 1.0
    name = method.removeprefix("projector+")
    steps = 391
    for epoch, within in ((1, 0), (1, 390), (2, 0), (10, 7), (20, 0), (21, 0), (240, 390)):
        subject.progress = ((epoch - 1) * steps + within) / (240 * steps)
        assert subject.current_weights()[name] == pytest.approx(whole * min(epoch / 20, 1))


def test_weights_of_the_others_do_not_rise(data: Data, teacher: Model) -> None:
    subject = build_parts(recipe(method="crd", rival_warmup=20), data, teacher).distiller
    assert subject.current_weights()["crd"] == 0.8


@pytest.mark.parametrize("method", ["kd", "dkd", "dist"])
def test_a_second_head_can_meet_the_teacher(method: str, data: Data, teacher: Model) -> None:
    """The logits of the tap are compared, not those that the student returns."""
    plain = build_parts(recipe(method=method), data, teacher).distiller
    tapped = build_parts(recipe(method=method, student_logit_tap="fc"), data, teacher).distiller
    batch = next(iter(data.train_loader(batch_size=16, seed=0)))
    (name,) = plain.terms
    expected = plain.eval()(batch).parts[name]
    torch.testing.assert_close(tapped.eval()(batch).parts[name], expected)
    student, taught = tapped.capture(batch)
    assert taught is not None
    other = student._replace(output=student.output.flip(0))  # what the task sees
    torch.testing.assert_close(tapped.terms[name](other, taught), expected)


def test_a_weight_of_ones_own_takes_the_place_of_the_published_one(data: Data, teacher: Model) -> None:
    parts = build_parts(recipe(method="at", rival_weight=7.0), data, teacher)
    assert {weight for name, weight in parts.distiller.weights.items() if name != "task"} == {7.0}
    assert len(parts.distiller.terms) == 3  # the three stages


PROTOCOL = [
    ("at", "wrn_16_2", "wrn_40_1", ("block1", "block2", "block3"), ("block1", "block2", "block3")),
    (
        "vid",
        "vgg8",
        "mobilenetv2",
        *(tuple(f"pool{i}:input" for i in (1, 2, 3, 4)), tuple(f"blocks.{i}" for i in "1246")),
    ),
    ("nst", "resnet8x4", "shufflenetv2", ("layer1", "layer2", "layer3"), ("layer1", "layer2", "layer3")),
    ("fitnet", "vgg8", "mobilenetv2", ("pool2:input",), ("blocks.2",)),
    ("sp", "wrn_16_2", "shufflenetv2", ("block3",), ("layer3",)),
    (
        "review",
        "wrn_16_2",
        "resnet8",
        ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1", "fc:input"),
        ("layer1", "layer2", "layer3", "fc:input"),
    ),
    (
        "review",
        "resnet14",
        "resnet8",
        (*(f"layer{i}.1.relu:input" for i in (1, 2, 3)), "fc:input"),
        ("layer1", "layer2", "layer3", "fc:input"),
    ),
]


@pytest.mark.parametrize(("rival", "teacher_name", "student", "taps_t", "taps_s"), PROTOCOL)
def test_pairs_of_the_protocol_are_read_as_its_code_reads_them(
    rival: str, teacher_name: str, student: str, taps_t: tuple[str, ...], taps_s: tuple[str, ...], data: Data
) -> None:
    settings = recipe(method=rival, teacher=f"cifar/{teacher_name}", student=f"cifar/{student}")
    terms = build_rival_terms(
        settings,
        build(f"cifar/{student}", num_classes=10),
        build(f"cifar/{teacher_name}", num_classes=10),
        data,
    ).values()
    assert tuple(tap for term in terms for tap in term.student_taps) == taps_s
    assert tuple(tap for term in terms for tap in term.teacher_taps) == taps_t


def test_sp_compares_flattened_maps(data: Data, teacher: Model) -> None:
    """Also from a cache, which pools the features of the methods that pool them."""
    parts = build_parts(recipe(method="sp"), data, teacher)
    student, taught = parts.distiller.eval().capture(next(iter(data.train_loader(batch_size=16, seed=0))))
    assert taught is not None
    rows = [side.features["layer3"].flatten(1) for side in (student, taught)]
    expected = losses.similarity_preserving(*rows)
    torch.testing.assert_close(parts.distiller.terms["sp"](student, taught), expected)
    assert build_reduction(recipe(method="sp")) is None
    assert build_reduction(recipe(method="pkt")) is not None


def test_cc_pulls_as_hard_as_its_published_code(data: Data, teacher: Model) -> None:
    """The loss of Knowledge-Distillation-Zoo and its weight; with the weight of another loss it was inert."""
    parts = build_parts(recipe(method="cc"), data, teacher)
    batch = next(iter(data.train_loader(batch_size=16, seed=0)))
    student, taught = parts.distiller.capture(batch)
    assert taught is not None
    z_s = student.features["fc:input"]
    kernels = [
        sum(math.exp(-0.8) * 0.8**p / math.factorial(p) * (u @ u.T) ** p for p in range(3))
        for u in (torch.nn.functional.normalize(z) for z in (z_s, taught.features["fc:input"]))
    ]
    published = 100 * torch.nn.functional.mse_loss(*kernels)
    ours = parts.distiller.weights["cc"] * parts.distiller.terms["cc"](student, taught)
    torch.testing.assert_close(ours, published)
    task = torch.nn.functional.cross_entropy(student.output, batch.target)
    pulls = [torch.autograd.grad(part, z_s, retain_graph=True)[0].norm().item() for part in (ours, task)]
    assert pulls[0] / pulls[1] > 0.05  # 1e-3 with the weight of the other loss


def test_named_taps_take_the_place_of_the_stages(data: Data, teacher: Model) -> None:
    parts = build_parts(recipe(method="at", student_tap="layer2", teacher_tap="layer3"), data, teacher)
    (term,) = parts.distiller.terms.values()
    assert (term.student_taps, term.teacher_taps) == (("layer2",), ("layer3",))


def test_crd_has_negatives_of_other_classes_where_there_are_labels(data: Data, teacher: Model) -> None:
    (term,) = build_parts(recipe(method="crd"), data, teacher).distiller.terms.values()
    labels = data.train_labels
    assert labels is not None
    index = torch.arange(4)
    negatives = term.draw_negatives(index)  # pyright: ignore[reportAttributeAccessIssue]
    assert (labels[negatives] != labels[index][:, None]).all()


@pytest.mark.parametrize("rival", ["fitnet", "vid", "review"])
def test_maps_against_tokens_are_refused_where_the_method_has_no_way(rival: str, data: Data) -> None:
    vit = build("small/vit-32", num_classes=10, size=8)
    with pytest.raises(UserError, match=f"method {rival} compares maps"):
        build_parts(recipe(method=rival, teacher="small/vit-32"), data, vit)


@pytest.mark.parametrize(("rival", "reason"), [("at", "is no map \\(n, c, h, w\\)"), ("vid", "compares maps")])
def test_maps_with_their_channels_last_are_not_read_as_others(rival: str, reason: str, data: Data) -> None:
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(8, 1, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=2, num_classes=10)
    teacher = Model(swin, "swin", InputSpec((0.5,) * 3, (0.5,) * 3, 8), 10, "head.fc:input", "random")
    with pytest.raises(UserError, match=reason):
        build_parts(recipe(method=rival), data, teacher)


@pytest.mark.parametrize("rival", ["at", "nst", "sp", "crd"])
def test_a_vit_can_teach_a_cnn(rival: str, data: Data) -> None:
    vit = build("small/vit-32", num_classes=10, size=8)
    assert step(build_parts(recipe(method=rival, teacher="small/vit-32"), data, vit))


@pytest.mark.parametrize("name", get_args(Projector))
@pytest.mark.parametrize("inverted", [False, True])
def test_every_projector_is_built(name: str, inverted: bool, data: Data, teacher: Model) -> None:
    assert step(build_parts(recipe(projector=name, inverted=inverted, projector_hidden=8), data, teacher))


@pytest.mark.parametrize("name", get_args(Norm))
def test_every_norm_is_built(name: str, data: Data, teacher: Model) -> None:
    changes = {"student_norm": name, "teacher_norm": name, "feature_loss": "mean_squared_error"}
    assert step(build_parts(recipe(**changes), data, teacher))
    assert step(build_parts(recipe(input_norm=name), data, teacher))


@pytest.mark.parametrize("name", get_args(FeatureLoss))
def test_every_feature_loss_is_built(name: str, data: Data, teacher: Model) -> None:
    dense = {"student_tap": "layer2", "teacher_tap": "layer2"}
    dense |= {"student_pool": "spatial_positions", "teacher_pool": "spatial_positions"}
    assert step(build_parts(recipe(feature_loss=name, **dense), data, teacher))


@pytest.mark.parametrize("name", get_args(LogitLoss))
def test_every_logit_loss_is_built(name: str, data: Data, teacher: Model) -> None:
    assert step(build_parts(recipe(method="kd", logit_loss=name), data, teacher)).keys() == {"task", "logit"}


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("cifar/resnet14", (64, 16, 4)),  # maps of the student's own sizes
        ("small/cnn-8", (16, 4)),  # maps twice as large
        ("small/vit-32", (4, 4, 4)),  # patches of 2 x 2
    ],
)
def test_the_projector_at_every_stage(name: str, positions: tuple[int, ...], data: Data) -> None:
    """Stages meet place by place on the coarser grid; the weight is shared out."""
    torch.manual_seed(1)
    teacher = build(name, num_classes=10, size=8)
    parts = build_parts(recipe(teacher=name, method="stages", feature_weight=2.0), data, teacher)
    terms = [term for term in parts.distiller.terms.values() if isinstance(term, FeatureTerm)]
    assert list(parts.distiller.terms) == ["feature", *(f"feature{stage + 1}" for stage in range(len(positions)))]
    assert {parts.distiller.weights[term] for term in parts.distiller.terms} == {2.0 / len(terms)}
    assert len({term.student_taps for term in terms}) == len(terms)
    student, taught = parts.distiller.capture(next(iter(data.train_loader(batch_size=16, seed=0))))
    assert taught is not None
    for term, places in zip(terms[1:], positions, strict=True):
        ours = term.student_pool(student.features[term.student_taps[0]])
        theirs = term.teacher_pool(taught.features[term.teacher_taps[0]])
        assert ours.shape[:2] == theirs.shape[:2] == (16, places)
    assert all(value != 0 for value in step(parts).values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student_tap": "layer1"}, "student_tap: nothing reads it with method stages"),
        (
            dict.fromkeys(("student_pool", "teacher_pool"), "spatial_positions") | {"feature_loss": GAUSSIAN},
            "feature_loss: gaussian_wasserstein compares positions; method stages",
        ),
    ],
)
def test_stages_that_cannot_be_projected_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe(method="stages").changed(changes)
