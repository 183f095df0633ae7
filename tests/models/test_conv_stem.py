"""DeiT behind a convolutional stem: what it computes, what its two heads learn, and whose checkpoints it takes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck import Distiller, LogitTerm, losses
from limbeck.errors import UserError
from limbeck.models import build
from limbeck.models.conv_stem import SHAPES, ConvStemViT
from limbeck.tasks import Classification
from limbeck.training.optim import check_gradients

DISTILLED = "deit/conv-stem-test-distilled"


def published(width: int, depth: int, classes: int, tokens: int, *, second: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released student, written down from its description: DeiT's, and the stem's."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, tokens + 2, width)}
    for at, (inputs, kernel) in {0: (3, 7), 3: (64, 3), 6: (64, 3)}.items():
        shapes[f"conv_embed.conv.{at}.weight"] = (64, inputs, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"conv_embed.conv.{at + 1}.{name}"] = (64,)
        shapes[f"conv_embed.conv.{at + 1}.num_batches_tracked"] = ()
    shapes |= {"conv_embed.proj.weight": (width, 64, 8, 8), "conv_embed.proj.bias": (width,)}
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(depth):
        for name, (outputs, inputs) in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = (outputs * width, inputs * width)
            shapes[f"blocks.{block}.{name}.bias"] = (outputs * width,)
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (width,), f"blocks.{block}.{name}.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for head in ("head", second):
        shapes |= {f"{head}.weight": (classes, width), f"{head}.bias": (classes,)}
    return shapes


def planted(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    counts = {name: shape == () for name, shape in shapes.items()}
    return {name: torch.tensor(7) if counts[name] else torch.rand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("name", "width", "depth"), [("tiny", 192, 12), ("small", 384, 12)])
def test_names_and_shapes_are_the_released_models(name: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        module = build(f"deit/conv-stem-{name}-distilled", num_classes=1000).module
    found = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert found == published(width, depth, 1000, 196, second="head_conv")


def test_one_for_small_images() -> None:
    """Blocks, width and tokens are those of small/vit-64, so that a difference between them is the stem's."""
    stem, plain = (build(name, num_classes=10, size=32).module for name in ("deit/conv-stem-mini", "small/vit-64"))

    def blocks(module: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for name, p in module.named_parameters() if name.startswith("blocks.")]

    assert blocks(stem) == blocks(plain)
    assert stem.get_parameter("pos_embed").shape == (1, 1 + 64, 64)
    assert plain.get_parameter("pos_embed").shape == (1, 64, 64)
    with pytest.raises(UserError, match="28 and 32 would fit"):
        build("deit/conv-stem-mini", num_classes=10, size=30)


@pytest.mark.parametrize("kind", ["paper", "vkd"])
def test_released_checkpoints_load(kind: str, tmp_path: Path) -> None:
    """The paper's keeps its loss in the student, VkD's its projector, under DDP, with another name of the head."""
    second = "head_conv" if kind == "paper" else "head_dist"
    state = planted(published(32, 6, 5, 4, second=second))
    if kind == "paper":
        extra = {"embed.weight": (48, 32), "embed.bias": (48,), "bn_s.running_mean": (48,), "bn_t.running_var": (48,)}
        whole = {"model": state | planted({f"distillation_loss.{name}": shape for name, shape in extra.items()})}
    else:
        extra = planted({"projector.parametrizations.weight.original": (48, 32)})
        whole = {"student": {f"module.{name}": value for name, value in (state | extra).items()}, "epoch": 299}
    torch.save(whole, tmp_path / "latest.pth.tar")
    loaded = build(DISTILLED, num_classes=5, size=32, weights=tmp_path / "latest.pth.tar").module.state_dict()
    state = {key.replace("head_dist", "head_conv"): value for key, value in state.items()}
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_co_advises_own_model_is_another_one(tmp_path: Path) -> None:
    """It has a second stem of involutions and a third head, and is refused by name."""
    state = planted(published(32, 6, 5, 5, second="head_conv") | {"head_inv.weight": (5, 32), "inv_embed.w": (3,)})
    torch.save({"model": state}, tmp_path / "civt.pth")
    with pytest.raises(UserError, match=r"2 unexpected, 1 of another shape(?s:.)*head_inv"):
        build(DISTILLED, num_classes=5, size=32, weights=tmp_path / "civt.pth")


def test_the_forward_pass_is_the_description() -> None:
    """The mean of the patches is the second token; in evaluation the heads are averaged; twin in plain steps."""
    torch.manual_seed(0)
    module = ConvStemViT(SHAPES["test"], size=32, num_classes=5, distilled=True)
    nn.init.normal_(module.cls_token)
    assert module.head_conv is not None
    seen: list[Tensor] = []
    module.patches.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    images = torch.randn(3, 3, 32, 32)
    for training in (True, False):
        module.train(training)
        with torch.no_grad():
            stem = module.conv_embed.proj(module.conv_embed.conv(images))
            assert stem.shape == (3, 32, 2, 2)
            rows = [stem[:, :, i, j] for i in range(2) for j in range(2)]
            mean = sum(rows[1:], rows[0]) / 4
            tokens = torch.stack([module.cls_token[0].expand(3, -1), mean, *rows], 1) + module.pos_embed
            for block in module.blocks:
                tokens = tokens + block.attn(block.norm1(tokens))
                tokens = tokens + block.mlp(block.norm2(tokens))
            tokens = module.norm(tokens)
            labels, teacher = module.head(tokens[:, 0]), module.head_conv(tokens[:, 1])
            torch.testing.assert_close(module(images), labels if training else (labels + teacher) / 2)
        torch.testing.assert_close(seen[-1], tokens[:, 2:])


def test_each_head_learns_from_its_own() -> None:
    """The labels reach the first head alone, the teacher the second, and both the blocks."""
    torch.manual_seed(0)
    student, teacher = build(DISTILLED, num_classes=5, size=32), build("cifar/resnet8", num_classes=5)
    term = LogitTerm(losses.kl_divergence, student_tap="head_conv")
    subject = Distiller(student.module, teacher.module, Classification(), terms={"logit": term})
    batch = (torch.randn(4, 3, 32, 32), torch.randint(5, (4,)))
    for chosen, learns, stays in (("task", "head", "head_conv"), ("logit", "head_conv", "head")):
        subject.weights = {name: float(name == chosen) for name in ("task", "logit")}
        subject.zero_grad()
        subject(batch).loss.backward()
        named = student.module.named_parameters()
        gradients = {name: 0.0 if p.grad is None else float(p.grad.abs().sum()) for name, p in named}
        assert gradients[f"{learns}.weight"] > 0
        assert gradients[f"{stays}.weight"] == 0
        assert gradients["conv_embed.conv.0.weight"] > 0
    subject.weights = {"task": 1.0, "logit": 1.0}
    subject(batch).loss.backward()
    check_gradients(subject)


def test_a_head_that_nothing_trains_is_told() -> None:
    subject = Distiller(build(DISTILLED, num_classes=5, size=32).module, None, Classification())
    subject((torch.randn(4, 3, 32, 32), torch.randint(5, (4,)))).loss.backward()
    with pytest.raises(UserError, match=r"no gradient reaches student\.head_conv\.weight"):
        check_gradients(subject)


def test_names_sizes_and_headless() -> None:
    model = build("deit/Conv-Stem_Test", num_classes=5, size=48)
    assert (model.name, model.input.size, model.penultimate) == ("deit/conv_stem_test", 48, "head:input")
    assert model.module(torch.zeros(2, 3, 48, 48)).shape == (2, 5)
    headless = build(DISTILLED, num_classes=0, size=32)
    assert headless.module(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    with pytest.raises(UserError, match='did you mean "deit/conv_stem_tiny"'):
        build("deit/conv-stem-tin", num_classes=5)
    with pytest.raises(UserError, match=r"patches of 16x16, which do not tile 40x40: 32 and 48 would fit"):
        build("deit/conv-stem-tiny", num_classes=5, size=40)
