"""The folder: what is planned, what it takes, what is refused, and where the rows of an image are."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.subject import BATCH, IMAGES, VIEWS, data, distiller, every_batch, small_shards, subject
from limbeck import cache
from limbeck.cache import store, writer
from limbeck.cache.identity import digest_of
from limbeck.cache.writer import GIB
from limbeck.errors import UserError


@pytest.mark.parametrize("augmentation", ["standard", "strong"])
@pytest.mark.parametrize("batches", [1, 2, 100])
@pytest.mark.parametrize("contents", [{}, {"top_k": 3, "exact": False}])
def test_the_estimate_is_what_is_written(
    tmp_path: Path, augmentation: str, batches: int, contents: dict[str, object]
) -> None:
    made = small_shards(subject(tmp_path / "c", augmentation=augmentation, **contents), batches)
    expected = made.cache.estimate(VIEWS)
    assert made.cache.bytes_missing(VIEWS) == expected
    assert not made.cache.folder.exists()
    made.fill()
    files = list(made.cache.folder.glob("*.safetensors"))
    steps = IMAGES // BATCH if augmentation == "strong" else -(-IMAGES // BATCH)
    assert len(files) == VIEWS * -(-steps // batches) == len(made.cache.shards(VIEWS))
    assert sum(path.stat().st_size for path in files) == expected
    assert made.cache.bytes_missing(VIEWS) == 0


def test_a_view_has_each_image_once_also_those_that_training_drops(tmp_path: Path) -> None:
    made = small_shards(subject(tmp_path / "c"), 2)
    assert made.fill() == VIEWS * IMAGES
    for view in range(VIEWS):
        found = torch.cat([cache.shards.open_shard(p)["index"] for p in sorted(tmp_path.glob(f"c/view-{view:04d}-*"))])
        assert sorted(found.tolist()) == list(range(IMAGES))


def test_rows_are_found_in_any_order_over_shards(tmp_path: Path) -> None:
    """Against the outputs of the live teacher, image by image."""
    made = small_shards(subject(tmp_path / "c"), 1)
    made.fill()
    expected: dict[tuple[int, int], torch.Tensor] = {}
    for number, batch in enumerate(every_batch(made)):
        output = made.teacher(batch).output
        view = number // made.loader.steps_of_view
        expected |= {(view, int(i)): row for i, row in zip(batch.index, output, strict=True)}
    for view in range(VIEWS):
        opened = made.cache.view(view)
        for index in (torch.randperm(IMAGES)[:17], torch.tensor([3]), torch.arange(IMAGES)):
            rows = opened.rows(index)
            wanted = torch.stack([expected[view, int(i)] for i in index])
            assert torch.equal(made.cache.unpack(rows).output, wanted)
            assert rows["pixels"].shape == index.shape


def test_what_is_there_is_not_computed_again_and_views_can_be_added(tmp_path: Path) -> None:
    first = subject(tmp_path / "c", views=2)
    first.fill()
    assert first.teacher.images == BATCH + 2 * IMAGES  # one batch to see what the teacher gives
    kept = first.files()
    again = subject(tmp_path / "c", views=3)
    assert again.cache.missing(3) == [store.Shard(2, 0)]
    assert again.fill() == IMAGES
    assert again.teacher.images == IMAGES
    files = again.files()
    assert {name: files[name] for name in kept} == kept
    assert files.keys() - kept.keys() == {"view-0002-00000.safetensors"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"teacher_seed": 1}, "teacher_weights: [0-9a-f]{32} -> [0-9a-f]{32}"),
        ({"opened": data(images=80), "batch_size": 20}, r"data: \w+ -> \w+; images: 90 -> 80"),
        ({"augmentation": "none"}, r"augment: .*'pad': 1.* -> .*'pad': 0"),
        ({"augmentation": "strong"}, r"augment: .*'strong': False.* -> .*'strong': True"),
        ({"view_seed": 5}, "view_seed: 0 -> 5"),
        ({"seed": 1}, "view_seed: 0 -> 1"),
        ({"top_k": 3}, "top_k: None -> 3"),
        ({"exact": False}, "exact: True -> False"),
    ],
    ids=["teacher", "images", "augmentation", "strong", "view_seed", "seed", "top_k", "half"],
)
def test_another_cache_is_never_read_through(tmp_path: Path, changes: dict[str, object], line: str) -> None:
    subject(tmp_path / "c").fill()
    with pytest.raises(UserError, match=rf"c holds another cache \(.*{line}.*\); choose another folder") as raised:
        subject(tmp_path / "c", **changes)
    assert "\n" not in str(raised.value)


def test_order_and_batch_size_matter_only_where_images_are_mixed(tmp_path: Path) -> None:
    subject(tmp_path / "plain").fill()
    other = subject(tmp_path / "plain", seed=1, view_seed=0, batch_size=30)
    assert (other.cache.card.layout.seed, other.cache.card.layout.batch_size) == (0, BATCH)  # the rows are laid out so
    assert other.fill() == 0
    subject(tmp_path / "mixed", augmentation="strong").fill()
    with pytest.raises(UserError, match="batch_size: 20 -> 30"):
        subject(tmp_path / "mixed", augmentation="strong", batch_size=30)
    assert subject(tmp_path / "mixed", augmentation="strong", seed=1, view_seed=0).fill() == 0


def test_the_key_and_the_digest_tell_apart() -> None:
    one, two = distiller().teacher, distiller(seed=1).teacher
    assert one is not None
    assert two is not None
    assert digest_of(one.model) != digest_of(two.model)
    before = digest_of(one.model)
    weight = next(one.model.parameters())
    weight.data.view(-1)[0] = torch.nextafter(weight.data.view(-1)[0], torch.tensor(9.0))
    assert digest_of(one.model) != before
    keys = {cache.key_of({"a": 1, "b": 2}), cache.key_of({"a": 1, "b": 3}), cache.key_of({"a": 1})}
    assert len(keys) == 3
    assert cache.key_of({"b": 2, "a": 1}) == cache.key_of({"a": 1, "b": 2})


def test_too_large_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(tmp_path / "c")
    size = made.cache.estimate(VIEWS)
    assert cache.check_room(made.cache, VIEWS, limit=size / GIB) == size
    with pytest.raises(
        UserError, match=r"\(90 images x 3 views x \d+ bytes\), and --cache-limit allows .* GiB"
    ) as raised:
        cache.check_room(made.cache, VIEWS, limit=(size - 1) / GIB)
    for advice in ("fewer --cache-views", "--cache-top-k", "--cache-precision half", "a feature that is pooled"):
        assert advice in str(raised.value)
    usage = type("Usage", (), {"free": size - 1})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"GiB are free in .*; smaller by fewer --cache-views"):
        cache.check_room(made.cache, VIEWS, limit=1)
    assert not (tmp_path / "c").exists()


def test_other_files_and_a_broken_card_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="thesis is not empty and holds no cache"):
        subject(tmp_path / "thesis")
    with pytest.raises(UserError, match=r"thesis\.tex is a file; expected a folder, choose another folder"):
        subject(tmp_path / "thesis" / "thesis.tex")
    subject(tmp_path / "c").fill()
    card = tmp_path / "c" / "cache.json"
    good = card.read_text()
    for bad in ("", "{", "[]", "null", "{}", good.replace('"parts"', '"party"'), good.replace('"stored"', '"sorted"')):
        assert bad != good
        card.write_text(bad)
        with pytest.raises(UserError, match=r"cache.json cannot be read \(.*\); delete its folder"):
            subject(tmp_path / "c")
    card.write_text(json.dumps({**json.loads(good), "format": 2}))
    with pytest.raises(UserError, match="has format 2, and this version reads 1"):
        subject(tmp_path / "c")


def test_a_shard_of_another_cache_is_not_taken(tmp_path: Path) -> None:
    """Its checksum is right; what it holds is not."""
    made, other = subject(tmp_path / "c"), subject(tmp_path / "other", top_k=2)
    made.fill()
    other.fill()
    (tmp_path / "c" / "view-0001-00000.safetensors").write_bytes(
        (tmp_path / "other" / "view-0001-00000.safetensors").read_bytes()
    )
    made.cache.view(0)
    with pytest.raises(UserError, match=r"view-0001-00000.safetensors is damaged \(no output of shape \(10,\)"):
        made.cache.view(1)


def test_an_image_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    made = subject(tmp_path / "c", augmentation="strong")  # the short last batch is not in it
    made.fill()
    there = torch.cat([batch.index for batch in made.loader.stretch(0, range(made.loader.steps_of_view))])
    lost = sorted(set(range(IMAGES)) - set(there.tolist()))
    assert len(lost) == IMAGES % BATCH
    with pytest.raises(UserError, match=f"has no outputs for image {lost[0]} of view 0"):
        made.cache.view(0).rows(torch.tensor([int(there[0]), lost[0]]))


def test_shards_are_neither_too_large_nor_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(tmp_path / "c")
    assert made.cache.card.layout.batches == store.SHARD_IMAGES // BATCH
    a_row = made.cache.estimate(1) / IMAGES
    monkeypatch.setattr(store, "SHARD_BYTES", int(2.2 * BATCH * a_row))
    layout = subject(tmp_path / "c").cache.card.layout
    assert (layout.batches, layout.shards) == (2, 3)
    assert [list(layout.steps_of(number)) for number in range(3)] == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr(store, "SHARD_BYTES", 1)
    assert subject(tmp_path / "c").cache.card.layout.batches == 1


def test_a_loader_without_views_and_an_incomplete_cache_are_refused(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    with pytest.raises(UserError, match=r"is not complete: view-0000-00000.safetensors is missing"):
        cache.CachedLoader(made.loader, made.cache)
    made.fill()
    with pytest.raises(UserError, match="without `views` has new pixels in each epoch"):
        cache.CachedLoader(data().train_loader(batch_size=BATCH, seed=0), made.cache)
    more = data().train_loader(batch_size=BATCH, seed=0, views=VIEWS + 1)
    with pytest.raises(UserError, match=r"view-0003-00000\.safetensors is missing"):
        cache.CachedLoader(more, made.cache)


def test_a_card_says_what_there_is(tmp_path: Path) -> None:
    made = subject(tmp_path / "c", exact=False)
    made.fill()
    card = json.loads((tmp_path / "c" / "cache.json").read_text())
    assert card["specs"]["output"] == {
        "shape": [10],
        "stored": "float16",
        "computed": "float32",
        "channels_last": False,
    }
    assert card["identity"]["taps"] == ["fc:input"]
    assert replace(subject(tmp_path / "c", exact=False).cache.card) == made.cache.card


def test_a_card_that_another_process_writes_while_the_folder_is_listed_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look for the card and a look into the folder, the first process begins to write the cache."""
    other = subject(tmp_path / "c")
    (tmp_path / "c").mkdir()
    listed = Path.iterdir

    def written_first(folder: Path) -> Iterator[Path]:
        if folder == tmp_path / "c":
            other.cache.begin()
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", written_first)
    assert subject(tmp_path / "c").cache.card == other.cache.card


def test_a_cache_that_another_run_began_since_the_plan_is_not_mixed_with_it(tmp_path: Path) -> None:
    late, same = subject(tmp_path / "c", augmentation="strong"), subject(tmp_path / "c")
    subject(tmp_path / "c").fill()
    assert same.fill() == 0
    with pytest.raises(UserError, match=r"holds another cache \(augment: .*'strong': False.* -> .*'strong': True"):
        late.fill()
