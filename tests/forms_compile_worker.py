"""Compile feature terms, and distillers, and compare with the plain ones; print the differences as JSON.

In a process of its own, which has no run-time shape checks: as a user has it.
"""

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, losses, norms, pooling, projectors
from limbeck.taps import Captured
from limbeck.tasks import Classification
from limbeck.terms import Form

D_S, D_T = 3, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(projector: nn.Module, form: Form | None, *, norm: str = "batch", **more: Any) -> FeatureTerm:
    """On maps, each position a row."""
    target = D_S if more.get("inverted") else D_T
    made = {"batch": norms.BatchNorm(target), "layer": norms.LayerNorm(target), "none": None}[norm]
    return FeatureTerm(
        "z",
        "z",
        projector=projector,
        student_norm=made,
        teacher_norm=made,
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
        form=form,
        **more,
    )


def terms() -> dict[str, FeatureTerm]:
    linear, mlp = projectors.linear(D_S, D_T), projectors.mlp(D_S, D_T, hidden=5)
    orthogonal, inverted = projectors.orthogonal(D_S, D_T), projectors.linear(D_T, D_S)
    logged: dict[str, Any] = {"correlation_loss": losses.log_correlation}
    return {
        "direct": term(linear, Form.DIRECT, **logged),
        "direct, orthogonal": term(orthogonal, Form.DIRECT, loss=losses.log_sum),
        "direct, mlp and layer": term(mlp, Form.DIRECT, norm="layer", loss=losses.smooth_l1),
        "direct, ensemble": term(projectors.ensemble(D_S, D_T), Form.DIRECT, norm="none", loss=losses.cosine),
        "direct, Ridge": term(projectors.Ridge(D_S, D_T), Form.DIRECT, loss=losses.mean_squared_error),
        "moments": term(linear, Form.MOMENTS, **logged),
        "moments, mlp": term(mlp, Form.MOMENTS, loss=losses.mean_squared_error),
        "moments, orthogonal": term(orthogonal, Form.MOMENTS, **logged),
        "moments, inverted": term(inverted, Form.MOMENTS, inverted=True, **logged),
        "moments, ZCA in front": term(linear, Form.MOMENTS, input_norm=norms.ZCA(D_S), **logged),
        "chosen": term(linear, None, **logged),
        "chunked": term(linear, Form.CHUNKED, loss=losses.log_sum),
        "chunked, mlp and layer": term(mlp, Form.CHUNKED, norm="layer", loss=losses.smooth_l1),
    }


def step_of_term(subject: FeatureTerm, call: Callable[..., Any]) -> dict[str, Tensor]:
    """Two batches: for the second length what was compiled is compiled anew, for any length or for that one."""
    found: dict[str, Tensor] = {}
    for n in (9, 7):
        z_s, z_t = draw(n, D_S, 2, 2).requires_grad_(), 2 * draw(n, D_T, 2, 2, seed=1) - 1
        value = call(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t}))
        (3 * value).backward()
        assert z_s.grad is not None
        found |= {f"value {n}": value.detach(), f"z_s {n}": z_s.grad}
        found |= {f"{name} {n}": reading for name, reading in subject.readings.items()}
    return found | what_is_left(subject)


def what_is_left(subject: nn.Module) -> dict[str, Tensor]:
    """Gradients and buffers."""
    found = {f"d{name}": p.grad for name, p in subject.named_parameters() if p.grad is not None}
    return found | dict(subject.named_buffers())


def distiller(form: Form) -> Distiller:
    """Taps on a map and in front of the classifier, inside of what is compiled."""
    torch.manual_seed(0)
    dense = FeatureTerm(
        "conv2",
        "conv2",
        projector=projectors.mlp(4, 6, hidden=5),
        student_norm=norms.BatchNorm(6),
        teacher_norm=norms.BatchNorm(6),
        loss=losses.log_sum if form is Form.CHUNKED else losses.mean_squared_error,
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
        form=form,
    )
    pooled = tiny.feature_term(4, 6, correlation=True)
    all_terms = {"dense": dense, "pooled": pooled, "logit": LogitTerm()}
    return Distiller(tiny.Net(4), tiny.Net(6), Classification(), terms=all_terms, weights={"dense": 0.5})


def step_of_distiller(subject: Distiller, call: Callable[..., Any]) -> dict[str, Tensor]:
    result = call(tiny.Batch(*tiny.images(8)))
    result.loss.backward()
    return {"loss": result.loss.detach()} | result.parts | result.readings | what_is_left(subject)


def difference(
    subject: Any, step: Callable[[Any, Callable[..., Any]], dict[str, Tensor]], *, whole: bool
) -> float | str:
    """Largest difference of all that a step leaves, or what went wrong."""
    torch.compiler.reset()
    counters.clear()
    subject.zero_grad()  # some have the same projector
    other = copy.deepcopy(subject)
    try:
        ours = step(other, torch.compile(other, backend="aot_eager", fullgraph=whole))
    except Exception as error:  # whatever the compiler raises is what the test shall show
        return str(error).strip().splitlines()[0]
    if counters["stats"]["unique_graphs"] == 0:
        return "nothing was compiled"
    theirs = step(subject, subject)
    if ours.keys() != theirs.keys():
        return f"{sorted(ours)} is not {sorted(theirs)}"
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)


def main() -> None:
    found: dict[str, float | str] = {}
    for name, subject in terms().items():
        # Blocks take gradients on the way, and Ridge looks at what it solves: there the graph may break.
        whole = "chunked" not in name and "Ridge" not in name
        found[name] = difference(subject, step_of_term, whole=whole)
    for form in (Form.MOMENTS, Form.CHUNKED):  # its other feature term is direct; taps set hooks, which break the graph
        found[f"distiller, {form.value}"] = difference(distiller(form), step_of_distiller, whole=False)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
