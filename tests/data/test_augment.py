import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from limbeck.data import augment, keys, on_device, randaugment
from limbeck.data.keys import Stream


def batch(n: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def numbers(n: int, count: int, seed: int = 0) -> np.ndarray:
    return keys.uniforms(seed, 0, Stream.CROP, np.arange(n), count)


def test_keys_are_uniform_and_independent_of_the_batch():
    whole = keys.uniforms(3, 5, Stream.FLIP, np.arange(4000), 4)
    part = keys.uniforms(3, 5, Stream.FLIP, np.array([17, 3999]), 4)
    np.testing.assert_array_equal(part, whole[[17, 3999]])
    np.testing.assert_array_equal(keys.uniforms(3, 5, Stream.FLIP, np.array([17]), 2), whole[[17], :2])
    assert abs(whole.mean() - 0.5) < 0.01
    assert abs(whole.std() - 12**-0.5) < 0.01
    assert np.abs(np.corrcoef(whole.T) - np.eye(4)).max() < 0.05
    assert abs(np.corrcoef(whole[:-1, 0], whole[1:, 0])[0, 1]) < 0.05
    others = [
        keys.uniforms(4, 5, Stream.FLIP, np.arange(4000), 1),
        keys.uniforms(3, 6, Stream.FLIP, np.arange(4000), 1),
        keys.uniforms(3, 5, Stream.CROP, np.arange(4000), 1),
    ]
    for other in others:
        assert abs(np.corrcoef(whole[:, 0], other[:, 0])[0, 1]) < 0.05


def test_pad_crop_equals_slices_of_padded_images():
    images, drawn = batch(40), numbers(40, 2)
    out = augment.pad_crop(images, drawn, 2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for i, (u, v) in enumerate(drawn):
        top, left = int(u * 5), int(v * 5)
        seen |= {("y", top), ("x", left)}
        assert torch.equal(out[i], padded[i, :, top : top + 16, left : left + 16])
    assert len(seen) == 10


def test_flip_mirrors_half():
    images, drawn = batch(2), np.array([[0.4], [0.6]])
    out = augment.flip(images.clone(), drawn)
    assert torch.equal(out[0], images[0].flip(-1))
    assert torch.equal(out[1], images[1])


@given(st.integers(0, 1000), st.floats(8, 400), st.floats(8, 400))
@settings(max_examples=50, deadline=None)
def test_random_boxes_lie_inside_and_have_the_stated_shape(seed: int, width: float, height: float):
    left, top, right, bottom = augment.random_boxes(width, height, numbers(64, augment.BOX_NUMBERS, seed)).T
    assert min(left.min(), top.min()) >= 0
    assert max(right.max(), bottom.max()) <= 1 + 1e-9
    area = (right - left) * (bottom - top)
    aspect = (right - left) * width / ((bottom - top) * height)
    narrow = max(width / height, height / width) > 4 / 3  # then the fallback may be smaller than 8%
    assert narrow or area.min() >= 0.08 - 1e-9
    assert aspect.min() >= 3 / 4 - 1e-6
    assert aspect.max() <= 4 / 3 + 1e-6


def test_whole_pixels_are_rounded_and_never_none():
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.26, 0.24, 0.49, 0.51], [0.5, 0.5, 0.501, 0.501]])
    assert augment.whole_pixels(boxes, 10).tolist() == [[0, 0, 10, 10], [3, 2, 5, 5], [5, 5, 6, 6]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crop_resize_of_the_whole_is_the_image(layout: torch.memory_format):
    images = batch(3).contiguous(memory_format=layout)
    whole = np.tile([0, 0, 16, 16], (2, 1))
    assert torch.equal(augment.crop_resize(images, np.array([2, 0]), whole, 16), images[[2, 0]])
    quarter = np.tile([0, 0, 8, 8], (2, 1))
    assert torch.equal(augment.crop_resize(images, np.array([1, 1]), quarter, 8), images[[1, 1], :, :8, :8])


def test_crop_resize_equals_pillow():
    images = smooth(6, 40)
    edges = augment.whole_pixels(augment.random_boxes(40.0, 40.0, numbers(6, augment.BOX_NUMBERS)), 40)
    out = augment.crop_resize(images, np.arange(6), edges, 24)
    for i, edge in enumerate(edges.tolist()):
        want = pil(images[i]).crop(edge).resize((24, 24), Image.Resampling.BICUBIC)
        assert np.abs(out[i].permute(1, 2, 0).numpy().astype(int) - np.asarray(want).astype(int)).max() <= 1


def smooth(n: int, side: int) -> torch.Tensor:
    small = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    large = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic")
    return (large.clamp(0, 1) * 255).to(torch.uint8).contiguous()


def test_the_forms_for_accelerators_give_the_same_pixels():
    """What runs on a GPU, run on the CPU, to the bit."""
    images, drawn = batch(40), numbers(40, 2)
    for pad in (1, 2, 8):
        corners = (drawn * (2 * pad + 1)).astype(np.int64)
        assert torch.equal(on_device.pad_crop(images, corners, pad), augment.pad_crop(images, drawn, pad))
    mirrored = on_device.flip(images, drawn[:, 0] < 0.5)
    assert torch.equal(mirrored, augment.flip(images.clone(), drawn[:, :1]))
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(on_device.to_float(levels), augment.to_float(levels))
    assert torch.equal(augment.to_float(levels), torch.div(levels, 255))
    for side in (24, 60):  # smaller and larger than the boxes
        stored = smooth(40, 40)
        edges = augment.whole_pixels(augment.random_boxes(40.0, 40.0, numbers(40, augment.BOX_NUMBERS)), 40)
        assert torch.equal(
            on_device.crop_resize(stored, edges, side), augment.crop_resize(stored, np.arange(40), edges, side)
        )


@pytest.mark.gpu
def test_a_gpu_gives_the_pixels_of_the_cpu():
    gpu = torch.device("cuda")
    images, drawn = batch(64, 32), numbers(64, augment.BOX_NUMBERS + 1)
    words = keys.words(0, 0, Stream.ERASE, np.arange(64), 1)
    there = on_device.send(images, gpu)
    for name, function in {
        "pad_crop": lambda x: augment.pad_crop(x, drawn[:, :2], 4),
        "flip": lambda x: augment.flip(x.clone(), drawn[:, :1]),
        "to_float": augment.to_float,
        "erase": lambda x: augment.erase(augment.to_float(x), drawn, words),
        "rand_augment": lambda x: randaugment.rand_augment(x, drawn[:, : randaugment.NUMBERS]).float() / 255,
    }.items():
        here, back = function(images), function(there).cpu()
        most = 1.01 / 255 if name == "rand_augment" else 0
        assert (here.float() - back.float()).abs().max() <= most, name


def test_erase_a_quarter_of_the_images_with_noise_in_range():
    n = 800
    images = torch.full((n, 3, 16, 16), 0.5)
    original = images.clone()
    drawn = keys.uniforms(0, 0, Stream.ERASE, np.arange(n), 1 + augment.BOX_NUMBERS)
    noise = keys.words(0, 0, Stream.ERASE, np.arange(n), 1)
    out = augment.erase(images, drawn, noise)
    changed = (out != 0.5).any(1).flatten(1).float().mean(1)
    hit = changed > 0
    assert abs(hit.float().mean() - 0.25) < 0.05
    assert changed[hit].max() < 0.4
    assert out is images
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(out, augment.erase(original, drawn, noise))
    assert torch.equal(augment.erase(out[:1].clone(), np.ones((1, 23)), noise[:1]), out[:1])  # none is drawn


@given(st.integers(0, 10_000), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_mix_targets_sum_to_one_and_match_the_pixels(seed: int, n: int):
    # Image i is the constant i, class i: the target then says what share of each is in the picture.
    images = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 16, 16)
    mixed, target = augment.mix(images.clone(), torch.arange(n), n, np.random.default_rng(seed))
    assert target is not None
    assert target.shape == (n, n)
    torch.testing.assert_close(target.sum(1), torch.ones(n))
    wanted = target @ torch.arange(n, dtype=torch.float32)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), wanted, atol=1e-4, rtol=1e-4)
    again, none = augment.mix(images.clone(), None, 0, np.random.default_rng(seed))
    assert none is None
    assert torch.equal(again, mixed)


def test_mix_uses_both_kinds():
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    kinds = set()
    for seed in range(20):
        mixed, _ = augment.mix(images.clone(), None, 0, np.random.default_rng(seed))
        kinds.add("cutmix" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixup")
    assert kinds == {"mixup", "cutmix"}


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def test_operations_equal_pillow():
    """Slow twin: Pillow, one image at a time, with timm's meaning of the levels."""
    images = batch(8, 24)
    images[0] = 77  # a constant image
    level = np.linspace(0, 1, 8)
    signed = level * np.array([1, -1] * 4)
    factor = np.maximum(0.1, 1 + 0.9 * signed)
    twins = {
        "autocontrast": lambda x, i: ImageOps.autocontrast(x),
        "equalize": lambda x, i: ImageOps.equalize(x),
        "invert": lambda x, i: ImageOps.invert(x),
        "posterize": lambda x, i: x.point(lambda p: p & (0xFF00 >> (4 - int(level[i] * 4))) & 0xFF),
        "solarize": lambda x, i: ImageOps.solarize(x, 256 - int(level[i] * 256)),
        "solarize_add": lambda x, i: x.point(lambda p: min(255, p + int(level[i] * 110)) if p < 128 else p),
        "color": lambda x, i: ImageEnhance.Color(x).enhance(factor[i]),
        "contrast": lambda x, i: ImageEnhance.Contrast(x).enhance(factor[i]),
        "brightness": lambda x, i: ImageEnhance.Brightness(x).enhance(factor[i]),
        "sharpness": lambda x, i: ImageEnhance.Sharpness(x).enhance(factor[i]),
        "rotate": lambda x, i: x.rotate(30 * signed[i], Image.Resampling.BILINEAR, fillcolor=(124, 116, 104)),
        "shear_x": lambda x, i: affine(x, (1, 0.3 * signed[i], 0, 0, 1, 0)),
        "shear_y": lambda x, i: affine(x, (1, 0, 0, 0.3 * signed[i], 1, 0)),
        "translate_x": lambda x, i: affine(x, (1, 0, 0.45 * signed[i] * 24, 0, 1, 0)),
        "translate_y": lambda x, i: affine(x, (1, 0, 0, 0, 1, 0.45 * signed[i] * 24)),
    }
    assert tuple(sorted(twins)) == tuple(sorted(randaugment.OPERATIONS))
    for name, twin in twins.items():
        out = randaugment.apply(name, images, level, signed)
        assert out.dtype == torch.uint8
        geometric = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        for i in range(8):
            want = np.asarray(twin(pil(images[i]), i)).astype(int)
            got = out[i].permute(1, 2, 0).numpy().astype(int)
            if geometric:  # Pillow fills where less than a whole pixel is inside; compare the inner part
                off = np.abs(want - got).max(2) > 2
                assert off.mean() < 0.15, (name, i)
            else:
                assert np.abs(want - got).max() <= 2, (name, i)


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(124, 116, 104)
    )


def test_rand_augment_is_a_function_of_each_image():
    images = batch(64)
    drawn = numbers(64, randaugment.NUMBERS)
    out = randaugment.rand_augment(images, drawn)
    assert torch.equal(out, randaugment.rand_augment(images, drawn))
    alone = torch.cat([randaugment.rand_augment(images[i : i + 1], drawn[i : i + 1]) for i in range(64)])
    assert torch.equal(out, alone)
    untouched = float((out == images).flatten(1).all(1).float().mean())
    assert 0.1 < untouched < 0.5  # (1/2)^2, and operations that happen to do nothing


def test_unknown_operation():
    with pytest.raises(ValueError, match="no operation"):
        randaugment.apply("melt", batch(1), np.ones(1), np.ones(1))
