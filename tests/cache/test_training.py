"""Training from a cache is training with the live teacher; what does not belong to the images is never handed out."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from cache.subject import BATCH, IMAGES, VIEWS, data, distiller, small_shards, subject, train
from data.images import folder, picture
from limbeck import Distiller, FeatureTerm, LogitTerm, cache, fit, losses, norms, projectors
from limbeck.cache.selftest import verify
from limbeck.data import Batch, Data, DataSpec, open_data
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.rivals import CRDTerm, ReviewTerm
from limbeck.tasks import Classification, LabelFree


def live(augmentation: str, *, epochs: int = VIEWS, accumulate: int = 1) -> dict[str, torch.Tensor]:
    loader = data(augmentation).train_loader(batch_size=BATCH, seed=0)
    return train(distiller(), loader, epochs=epochs, accumulate=accumulate)


@pytest.mark.parametrize("augmentation", ["none", "standard", "strong"])
@pytest.mark.parametrize("batches", [1, 100])
def test_with_all_views_it_ends_with_the_bytes_of_the_live_teacher(
    tmp_path: Path, augmentation: str, batches: int
) -> None:
    made = small_shards(subject(tmp_path / "c", augmentation=augmentation), batches)
    made.fill()
    made.distiller.release_teacher()
    got = train(made.distiller, cache.CachedLoader(made.loader, made.cache))
    assert tiny.same_bytes(got, live(augmentation))


def test_accumulated_batches_read_it_too(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    made.fill()
    made.distiller.release_teacher()
    got = train(made.distiller, cache.CachedLoader(made.loader, made.cache), accumulate=2)
    assert tiny.same_bytes(got, live("standard", accumulate=2))


@pytest.mark.parametrize("augmentation", ["standard", "strong"])
def test_fewer_views_than_epochs_are_gone_through_again(tmp_path: Path, augmentation: str) -> None:
    """The live teacher on the same views is the twin: its outputs are those of other batches, so equal but for bits."""
    made = small_shards(subject(tmp_path / "c", augmentation=augmentation, views=2), 2)
    made.fill()
    seen = made.teacher.images
    got = train(made.distiller, cache.CachedLoader(made.loader, made.cache), epochs=5)
    assert made.teacher.images == seen
    expected = train(distiller(), data(augmentation).train_loader(batch_size=BATCH, seed=0, views=2), epochs=5)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4)
    other = live(augmentation, epochs=5)
    assert not torch.allclose(got["s.conv1.weight"], other["s.conv1.weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("augmentation", ["none", "standard", "strong"])
def test_each_batch_brings_what_the_teacher_gives_for_its_very_pixels(tmp_path: Path, augmentation: str) -> None:
    made = small_shards(subject(tmp_path / "c", augmentation=augmentation, views=2), 1)
    made.fill()
    loader = cache.CachedLoader(made.loader, made.cache)
    assert len(loader) == IMAGES // BATCH
    count = 0
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            expected = made.teacher(Batch(*batch[:3]))
            torch.testing.assert_close(batch.teacher.output, expected.output)
            torch.testing.assert_close(batch.teacher.features["fc:input"], expected.features["fc:input"])
            count += 1
    assert count == 5 * len(loader)


def test_seeds_share_a_cache_where_the_views_have_their_own(tmp_path: Path) -> None:
    subject(tmp_path / "c", view_seed=7).fill()
    made = subject(tmp_path / "c", seed=1, view_seed=7, batch_size=30)
    assert made.fill() == 0
    first = next(iter(cache.CachedLoader(made.loader, made.cache)))
    torch.testing.assert_close(first.teacher.output, made.teacher(Batch(*first[:3])).output)
    assert cache.self_test(made.cache, VIEWS, made.loader, made.teacher, batches=100).rows == VIEWS * IMAGES


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_k", [None, 3])
def test_the_self_test_finds_no_difference_where_it_was_made(
    tmp_path: Path, exact: bool, precision: torch.dtype, top_k: int | None
) -> None:
    made = subject(tmp_path / "c", exact=exact, precision=precision, top_k=top_k)
    made.fill()
    tested = cache.self_test(made.cache, VIEWS, made.loader, made.teacher, batches=100)
    assert tested == cache.Tested(VIEWS * IMAGES, 0.0)
    computed = {spec.computed for name, spec in made.cache.card.specs.items() if name.startswith("feature")}
    assert computed == {str(precision).removeprefix("torch.")}


def test_the_self_test_tells_rounding_from_another_teacher(tmp_path: Path) -> None:
    made = subject(tmp_path / "c", exact=True)
    made.fill()
    teacher = made.distiller.teacher
    assert teacher is not None
    classifier: Any = teacher.model.fc
    with torch.no_grad():
        classifier.weight.mul_(1 + 1e-4)  # what other kernels may do
    tested = cache.self_test(made.cache, VIEWS, made.loader, made.teacher, batches=100)
    assert 0 < tested.deviation < 1e-3
    with torch.no_grad():
        classifier.weight.mul_(1.01)
    with pytest.raises(
        UserError, match=r'the teacher\'s "output" differs by .*% from that of view \d in the cache'
    ) as r:
        cache.self_test(made.cache, VIEWS, made.loader, made.teacher)
    assert "\n" not in str(r.value)


def photos(root: Path) -> Data:
    return open_data(DataSpec(source=str(root), workers=0, size=12))


def test_a_changed_image_is_found_by_the_batch_that_has_it(tmp_path: Path) -> None:
    """Same name, same length: the fingerprint does not see it."""
    root = tmp_path / "photos"
    folder(root / "train", {"a": 20, "b": 20}, kind="bmp")
    folder(root / "val", {"a": 2, "b": 2}, kind="bmp")
    made = subject(tmp_path / "c", opened=photos(root), batch_size=10, views=1)
    made.fill()
    picture(4711).save(root / "train" / "a" / "007.bmp")
    changed = subject(tmp_path / "c", opened=photos(root), batch_size=10, views=1)
    line = r"training image 7 has other pixels in view 0 than when the cache in .* was made; were image files changed"
    with pytest.raises(UserError, match=line):
        list(cache.CachedLoader(changed.loader, changed.cache))
    with pytest.raises(UserError, match=line):
        cache.self_test(changed.cache, 1, changed.loader, changed.teacher, batches=100)


def test_a_flipped_byte_is_found_before_training(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    made.fill()
    assert verify(made.cache, VIEWS) == made.cache.estimate(VIEWS)
    path = tmp_path / "c" / "view-0002-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert verify(made.cache, 2) == made.cache.estimate(2)
    with pytest.raises(
        UserError, match=r"view-0002-00000.safetensors is damaged \(its checksum differs\); delete that"
    ):
        verify(made.cache, VIEWS)
    path.unlink()
    assert made.fill() == IMAGES
    verify(made.cache, VIEWS)


def test_the_number_of_open_files_does_not_grow(tmp_path: Path) -> None:
    descriptors, maps = Path("/proc/self/fd"), Path("/proc/self/maps")
    if not descriptors.is_dir():
        pytest.skip("no /proc here")
    made = small_shards(subject(tmp_path / "c"), 1)
    made.fill()
    loader = cache.CachedLoader(made.loader, made.cache)
    found: list[tuple[int, int]] = []
    for epoch in range(6):
        loader.set_epoch(epoch)
        list(loader)
        gc.collect()  # what other tests left behind
        mapped = sum(str(tmp_path) in line for line in maps.read_text().splitlines())
        found.append((len(list(descriptors.iterdir())), mapped))
    assert len(set(found)) == 1
    assert found[0][1] == made.cache.card.layout.shards


def terms_of(kind: str, images: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    if kind == "crd":
        term = CRDTerm("fc:input", "fc:input", d_s=4, d_t=8, images=images, negatives=50)
        return {"crd": term, "logit": LogitTerm()}, ("fc:input",)
    if kind == "review":
        taps = ("conv1", "conv2")
        review = ReviewTerm(taps, taps, d_s=[2, 4], d_t=[4, 8], loss=losses.mean_squared_error)
        return {"review": review, "logit": LogitTerm()}, taps
    dense = FeatureTerm(
        "conv2",
        "conv2",
        projector=projectors.linear(4, 8),
        student_norm=norms.BatchNorm(8),
        teacher_norm=norms.BatchNorm(8),
        loss=losses.log_sum,
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
    )
    return {"dense": dense, "logit": LogitTerm()}, ("conv2",)


@pytest.mark.parametrize("kind", ["dense", "crd", "review"])
@pytest.mark.parametrize("labels", [True, False])
def test_dense_features_and_rivals_and_no_labels(tmp_path: Path, kind: str, labels: bool) -> None:
    """Terms that read maps, remember images, or draw numbers: equal to the byte."""

    def make() -> Distiller:
        source = distiller()
        assert source.teacher is not None
        terms, _ = terms_of(kind, IMAGES)
        task: Any = source.task
        free = LabelFree(student_input=task.student_transform, teacher_input=task.teacher_transform)
        return Distiller(source.student, source.teacher.model, task if labels else free, terms=terms)

    opened = open_data(DataSpec(source="digits", train_limit=IMAGES, labels=labels))
    loader = opened.train_loader(batch_size=BATCH, seed=0, views=2)
    made, contents = make(), cache.Contents(terms_of(kind, IMAGES)[1], exact=True)
    contents.require(made)
    teacher = cache.LiveTeacher(made, torch.device("cpu"))
    planned = cache.plan_cache(tmp_path / "c", contents.settings(), contents, loader=loader, teacher=teacher)
    cache.fill(planned, 2, loader, teacher)
    made.release_teacher()
    got = train(made, cache.CachedLoader(loader, planned), epochs=2)
    assert tiny.same_bytes(got, train(make(), opened.train_loader(batch_size=BATCH, seed=0), epochs=2))


def test_a_released_teacher_is_not_there() -> None:
    made = distiller()
    batch = next(iter(data().train_loader(batch_size=BATCH, seed=0)))
    assert made.capture(batch)[1] is not None
    made.release_teacher()
    assert not [name for name, _ in made.named_modules() if name.startswith("teacher")]
    with pytest.raises(UserError, match="the teacher was released, and this batch does not bring what it computed"):
        made(batch)
    alone = Distiller(made.student, None, Classification())
    with pytest.raises(UserError, match="a model that learns alone has no teacher"):
        cache.LiveTeacher(alone, torch.device("cpu"))(batch)


def test_the_self_test_chooses_by_its_generator(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    made.fill()
    before = torch.get_rng_state()
    seen = made.teacher.images
    cache.self_test(made.cache, VIEWS, made.loader, made.teacher, batches=2, random=np.random.default_rng(0))
    assert made.teacher.images - seen in (2 * BATCH, BATCH + IMAGES % BATCH)
    assert torch.equal(torch.get_rng_state(), before)  # the training that follows draws what it draws without it


@pytest.mark.gpu
def test_on_a_gpu_the_self_test_agrees_and_training_reads_it(tmp_path: Path) -> None:
    device, made = torch.device("cuda"), distiller().to("cuda")
    loader = data().train_loader(batch_size=BATCH, seed=0, views=VIEWS)
    contents = cache.Contents(("fc:input",))
    teacher = cache.LiveTeacher(made, device, torch.bfloat16)
    planned = cache.plan_cache(tmp_path / "c", contents.settings(), contents, loader=loader, teacher=teacher)
    cache.fill(planned, VIEWS, loader, teacher)
    assert planned.card.specs["output"].stored == "bfloat16"
    assert cache.self_test(planned, VIEWS, loader, teacher, batches=100).deviation < 0.05
    made.release_teacher()
    fit(made, cache.CachedLoader(loader, planned), epochs=VIEWS, precision=torch.bfloat16)
