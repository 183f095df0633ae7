import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference_rivals as slow
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.rivals import CRDTerm
from reference import as_a_user

M, K, D_S, D_T, WIDTH = 16, 6, 3, 5, 4
INDEX = [7, 2, 15, 0]
DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def build(*, labels: Tensor | None = None, images: int = M, negatives: int = K) -> CRDTerm:
    torch.manual_seed(0)
    return CRDTerm("z", "z", d_s=D_S, d_t=D_T, images=images, width=WIDTH, negatives=negatives, labels=labels).double()


def captured(z: Tensor, index: list[int] | Tensor | None) -> Captured:
    held = torch.tensor(index) if isinstance(index, list) else index
    return Captured(z, {"z": z}, index=held)


def fixed(index: Tensor) -> Tensor:
    """Negatives that are known beforehand."""
    return (index[:, None] * 7 + torch.arange(K) * 3 + 1) % M


def call(term: CRDTerm, z_s: Tensor, z_t: Tensor, index: list[int] | Tensor | None) -> Tensor:
    return term(captured(z_s, index), captured(z_t, index))


def test_equals_its_loop_twin_over_several_batches() -> None:
    term = build()
    twin = slow.CRD(term)
    term.draw_negatives = fixed
    for step, index in enumerate([INDEX, [1, 2, 3, 4], [7, 7, 2, 7], [5]]):  # the third has an image three times
        z_s, z_t = draw(len(index), D_S, seed=step), draw(len(index), D_T, seed=step + 9)
        negatives: list[list[int]] = fixed(torch.tensor(index)).tolist()
        expected = twin.step(z_s, z_t, index, negatives)
        assert call(term, z_s, z_t, index).item() == pytest.approx(expected, rel=1e-12)
        assert torch.allclose(term.student_bank, torch.tensor(twin.banks[0], dtype=DOUBLE), rtol=1e-12)
        assert torch.allclose(term.teacher_bank, torch.tensor(twin.banks[1], dtype=DOUBLE), rtol=1e-12)
        assert term.constants.tolist() == pytest.approx(twin.constants, rel=1e-12)


def test_equals_torchdistill_over_two_batches() -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    term = build()
    term.draw_negatives = fixed
    theirs = mid_level.CRDLoss("norm", "empty", "norm", WIDTH, M, K, M, eps=0.0).double()
    theirs.memory_v1.copy_(term.student_bank)
    theirs.memory_v2.copy_(term.teacher_bank)
    for step, held in enumerate([INDEX, [1, 2, 3, 4]]):
        index = torch.tensor(held)
        z_s, z_t = draw(4, D_S, seed=step), draw(4, D_T, seed=step + 9)
        u, v = term.student_embedding(z_s), term.teacher_embedding(z_t)
        u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
        extra = {"pos_idx": index, "contrast_idx": torch.cat([index[:, None], fixed(index)], 1)}
        expected = theirs({"norm": {"output": u}, "empty": {"input": extra}}, {"norm": {"output": v}})
        value = call(term, z_s, z_t, index)
        # Their temperature went through float32.
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        found = torch.autograd.grad(value, list(term.parameters()))
        wanted = torch.autograd.grad(expected.sum(), list(term.parameters()))
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(found, wanted, strict=True))
        assert torch.allclose(term.student_bank, theirs.memory_v1)
        assert torch.allclose(term.teacher_bank, theirs.memory_v2)


def test_gradients_are_right_and_reach_everything_but_banks_and_teacher() -> None:
    term = build()
    term.draw_negatives = fixed
    z_s, z_t = draw(4, D_S).requires_grad_(), draw(4, D_T, seed=1)
    call(term, z_s, z_t, INDEX)  # fixes the constants
    kept = {name: buffer.clone() for name, buffer in term.named_buffers()}
    names = [name for name, _ in term.named_parameters()]

    def loss(z_s: Tensor, *held: Tensor) -> Tensor:
        state = dict(zip(names, held, strict=True)) | {name: buffer.clone() for name, buffer in kept.items()}
        return torch.func.functional_call(term, state, (captured(z_s, INDEX), captured(z_t, INDEX)))

    assert torch.autograd.gradcheck(loss, (z_s, *term.parameters()))
    call(term, z_s, z_t, INDEX).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    assert not any(buffer.requires_grad for buffer in term.buffers())
    assert not any(reading.requires_grad for reading in term.readings.values())


def test_it_starts_where_the_docstring_says_whatever_batch_and_bank_are() -> None:
    for n, images, negatives, width in [(64, 2000, 512, 64), (16, 5000, 512, 128), (32, 2000, 4096, 64)]:
        term = CRDTerm("z", "z", d_s=D_S, d_t=D_T, images=images, negatives=negatives, width=width)
        index = torch.randperm(images)[:n]
        value = call(term, draw(n, D_S).float(), draw(n, D_T, seed=1).float(), index)
        assert value.item() == pytest.approx(2 * (1 + math.log(negatives)) + 1 / (width * 0.07**2), rel=0.1)


def test_training_makes_the_positives_stand_out() -> None:
    torch.manual_seed(0)
    term = CRDTerm("z", "z", d_s=8, d_t=8, images=32, width=8, negatives=16)
    z = torch.randn(32, 8)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.02)
    values: list[float] = []
    for _ in range(60):
        value = call(term, z, z + 0.01 * torch.randn(32, 8), torch.arange(32))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]
    assert term.readings["positive"] > term.readings["negative"] + 0.5


def test_in_evaluation_nothing_is_remembered_and_the_index_means_nothing() -> None:
    term = build().eval()
    before = {name: buffer.clone() for name, buffer in term.named_buffers()}
    z_s, z_t = draw(4, D_S), draw(4, D_T, seed=1)
    for index in (None, INDEX, [M + 1, M + 2, M + 3, M + 4]):
        assert call(term, z_s, z_t, index).isfinite()
    assert all(torch.equal(buffer, before[name]) for name, buffer in term.named_buffers())
    u = term.student_embedding(z_s)
    v = term.teacher_embedding(z_t)
    cosine = torch.nn.functional.cosine_similarity(u, v).mean().item()
    assert term.readings["positive"].item() == pytest.approx(cosine)


def test_negatives_come_from_the_global_generator_and_everything_else_from_the_state() -> None:
    first, second = build(), build()
    z_s, z_t = draw(4, D_S), draw(4, D_T, seed=1)
    call(first, z_s, z_t, INDEX)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(5)
    expected = call(first, z_s, z_t, INDEX).item()
    torch.manual_seed(5)
    assert call(second, z_s, z_t, INDEX).item() == expected
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    assert call(second, z_s, z_t, INDEX).item() != expected
    assert {"student_bank", "teacher_bank", "constants"} <= set(first.state_dict())
    assert set(build(labels=torch.arange(M) % 3).state_dict()) == set(first.state_dict())


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30).filter(lambda labels: len(set(labels)) > 1))
@settings(max_examples=40, deadline=None)
def test_with_labels_negatives_are_all_images_of_the_other_classes_and_no_others(labels: list[int]) -> None:
    count = len(labels)
    term = build(labels=torch.tensor(labels), images=count, negatives=40 * count)
    drawn = term.draw_negatives(torch.arange(count))
    for image, row in enumerate(drawn.tolist()):
        assert set(row) == {other for other in range(count) if labels[other] != labels[image]}


def test_without_labels_negatives_are_uniform_over_all_images() -> None:
    term = build(negatives=20_000)
    counts = torch.bincount(term.draw_negatives(torch.tensor([3]))[0], minlength=M)
    assert (counts / 20_000 - 1 / M).abs().max() < 0.01


def test_with_labels_negatives_are_uniform_over_the_others() -> None:
    term = build(labels=torch.tensor([0] * 10 + [1] * 4 + [2] * 2), negatives=20_000)
    counts = torch.bincount(term.draw_negatives(torch.tensor([12]))[0], minlength=M) / 20_000
    assert counts[10:14].sum() == 0
    assert (counts[[*range(10), 14, 15]] - 1 / 12).abs().max() < 0.01


def test_readings_do_not_depend_on_batch_size() -> None:
    term = build()
    term.draw_negatives = fixed
    z_s, z_t = draw(4, D_S), draw(4, D_T, seed=1)
    kept = {name: value.clone() for name, value in term.state_dict().items()}
    value = call(term, z_s, z_t, INDEX).item()
    expected = {name: reading.item() for name, reading in term.readings.items()}
    term.load_state_dict(kept)
    doubled = call(term, z_s.repeat(2, 1), z_t.repeat(2, 1), INDEX * 2).item()
    assert doubled == pytest.approx(value, rel=1e-12)
    assert {name: reading.item() for name, reading in term.readings.items()} == pytest.approx(expected, rel=1e-12)
    assert set(expected) == {"positive", "negative"}
    assert all(-1 <= reading <= 1 for reading in expected.values())


@pytest.mark.parametrize("n", [1, 2])
def test_bf16_autocast_zero_and_equal_features(n: int) -> None:
    torch.manual_seed(0)
    term = CRDTerm("z", "z", d_s=D_T, d_t=D_T, images=M, width=WIDTH, negatives=K)
    term.teacher_embedding.load_state_dict(term.student_embedding.state_dict())
    equal = draw(n, D_T).bfloat16()
    for a, z_t in [(equal, equal), (torch.zeros(n, D_T), torch.zeros(n, D_T)), (draw(n, D_T), draw(n, D_T, seed=1))]:
        z_s = a.bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = call(term, z_s, z_t.bfloat16(), INDEX[:n])
        assert value.dtype == torch.float32
        assert term.student_bank.dtype == torch.float32
        value.backward()
        assert z_s.grad is not None
        assert value.isfinite()
        assert z_s.grad.isfinite().all()
    with torch.no_grad():
        term.student_embedding.bias.zero_()
    z_s = torch.zeros(n, D_T, requires_grad=True)  # an embedding of length zero
    call(term, z_s, torch.zeros(n, D_T), INDEX[:n]).backward()
    assert z_s.grad is not None
    assert z_s.grad.isfinite().all()


def test_a_batch_without_a_usable_index_is_a_clear_error() -> None:
    term = build()
    z_s, z_t = draw(4, D_S), draw(4, D_T)
    with pytest.raises(UserError, match="does not say which images"):
        call(term, z_s, z_t, None)
    with pytest.raises(UserError, match=r"index of \(3,\) for 4"):
        call(term, z_s, z_t, [1, 2, 3])
    with pytest.raises(UserError, match=r"images 1 to 16; expected 0 to 15"):
        call(term, z_s, z_t, [1, 2, 3, M])
    with as_a_user(), pytest.raises(UserError, match=r"expected \(n, 3\)"):
        call(term, z_t, z_t, INDEX)


def test_numbers_and_labels_out_of_range_are_refused() -> None:
    for wrong in ({"images": 0}, {"width": 0}, {"negatives": 0}, {"temperature": 0.0}, {"momentum": 1.0}):
        with pytest.raises(UserError, match="CRDTerm"):
            CRDTerm("z", "z", **({"d_s": 3, "d_t": 3, "images": 4} | wrong))
    with pytest.raises(UserError, match=r"expected \(16,\) integers"):
        build(labels=torch.arange(3))
    with pytest.raises(UserError, match="integers"):
        build(labels=torch.rand(M))
    with pytest.raises(UserError, match="at least 2 classes"):
        build(labels=torch.ones(M, dtype=torch.int64))
