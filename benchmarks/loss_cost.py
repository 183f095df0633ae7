"""What a loss costs alone: time and memory of forward and backward, every form in the same run.

    python benchmarks/loss_cost.py --out docs/results/loss_cost.json

For each shape (N rows, D_s and D_t channels) the correlation loss and the elementwise LogSum of projected,
batch-normalized features: as the term chooses, in each of its forms, as published (an einsum for the diagonal), and as
torchdistill has it; and, where they can be computed, relational and contrastive losses. Rounds alternate between the
forms, so what else the machine does falls on all of them. Memory is the largest resident size during the step above
that before it, less the gradient of the student's feature, which every form has to give. Needs quiet cores; Linux.
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.features.taps import Captured
from limbeck.terms import LossForm

SHAPES = [(256, 192, 3024), (1024, 512, 2048), (25_088, 192, 768), (25_088, 384, 3024), (100_352, 384, 3024)]
POOLED = 2048  # rows up to which losses of pairs of rows are run at all
CRD_IMAGES, CRD_NEGATIVES, CRD_WIDTH = 50_000, 16_384, 128

Step = Callable[[Tensor, Tensor], Tensor]


def term(d_s: int, d_t: int, form: LossForm | None, *, elementwise: bool) -> Step:
    subject = FeatureTerm(
        "z",
        "z",
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        loss=losses.log_sum if elementwise else None,
        correlation_loss=None if elementwise else losses.log_correlation,
        form=form,
    )
    return lambda z_s, z_t: subject(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t}))


def published(d_s: int, d_t: int, *, elementwise: bool) -> Step:
    """The published losses: linear layer, two batch norms, and the form of the ImageNet or of the DeiT code."""
    projector = nn.Linear(d_s, d_t)
    norm_s, norm_t = nn.BatchNorm1d(d_t, eps=1e-4, affine=False), nn.BatchNorm1d(d_t, eps=1e-4, affine=False)

    def step(z_s: Tensor, z_t: Tensor) -> Tensor:
        a, t = norm_s(projector(z_s)), norm_t(z_t)
        if elementwise:
            return torch.log((a - t).abs().pow(4.0).sum())
        c = torch.einsum("bx,bx->x", a, t) / a.shape[0]
        return torch.log((c - 1).abs().pow(4.0).sum() + 1e-5)

    return step


def theirs(d_s: int, d_t: int) -> dict[str, Step]:
    """The losses of torchdistill, wired as its wrappers wire them; its SRD without the KL term."""
    from torchdistill.losses import mid_level

    projector = nn.Linear(d_s, d_t)
    norm_s, norm_t = nn.BatchNorm1d(d_t, eps=1e-4, affine=False), nn.BatchNorm1d(d_t, eps=1e-4, affine=False)
    srd = mid_level.SRDLoss("f", "output", "f", "output", "l", "output", "l", "output", exponent=4.0)
    pairs = mid_level.SPKDLoss("f", "f", "batchmean")
    relations = mid_level.RKDLoss("f", "f", 1.0, 0.0, "mean")
    contrast = mid_level.CRDLoss("n", "e", "n", CRD_WIDTH, CRD_IMAGES, CRD_NEGATIVES, CRD_IMAGES)
    embed_s, embed_t = nn.Linear(d_s, CRD_WIDTH), nn.Linear(d_t, CRD_WIDTH)

    def run_srd(z_s: Tensor, z_t: Tensor) -> Tensor:
        nothing = {"l": {"output": z_s.new_zeros(2, 2)}}
        return srd({"f": {"output": norm_s(projector(z_s))}} | nothing, {"f": {"output": norm_t(z_t)}} | nothing)

    def run_pairs(loss: nn.Module) -> Step:
        return lambda z_s, z_t: loss({"f": {"output": z_s}}, {"f": {"output": z_t}})

    def run_contrast(z_s: Tensor, z_t: Tensor) -> Tensor:
        s = nn.functional.normalize(embed_s(z_s), dim=1)
        t = nn.functional.normalize(embed_t(z_t), dim=1)
        index = torch.arange(z_s.shape[0])
        # Its own way to draw negatives fails on a misspelled attribute, so they are handed in.
        chosen = torch.randint(CRD_IMAGES, (z_s.shape[0], CRD_NEGATIVES + 1))
        chosen[:, 0] = index
        out_s, out_t = contrast.contrast_memory(s, t, index, chosen)
        return contrast.compute_contrast_loss(out_s) + contrast.compute_contrast_loss(out_t)

    return {
        "torchdistill SRD": run_srd,
        "torchdistill SP": run_pairs(pairs),
        "torchdistill RKD, distance": run_pairs(relations),
        "torchdistill CRD": run_contrast,
    }


def steps(n: int, d_s: int, d_t: int) -> dict[str, Step]:
    found = {
        "correlation, term's choice": term(d_s, d_t, None, elementwise=False),
        "correlation, direct": term(d_s, d_t, LossForm.DIRECT, elementwise=False),
        "correlation, moments": term(d_s, d_t, LossForm.MOMENTS, elementwise=False),
        "correlation, published": published(d_s, d_t, elementwise=False),
        "elementwise, term's choice": term(d_s, d_t, None, elementwise=True),
        "elementwise, direct": term(d_s, d_t, LossForm.DIRECT, elementwise=True),
        "elementwise, chunked": term(d_s, d_t, LossForm.CHUNKED, elementwise=True),
        "elementwise, published": published(d_s, d_t, elementwise=True),
    }
    others = theirs(d_s, d_t)
    if n > POOLED:
        others = {name: step for name, step in others.items() if "SRD" in name}
    elif n > 256:
        del others["torchdistill CRD"]  # 1,024 times 16,385 times 128 floats, several times over
    return found | others


def resident(what: str) -> int:
    """Bytes: VmRSS is what the process holds now, VmHWM the most since it was reset."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(what):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {what}")


def timed(step: Step, z_s: Tensor, z_t: Tensor) -> float:
    """Seconds of one step."""
    z_s = z_s.detach().requires_grad_()
    started = time.perf_counter()
    step(z_s, z_t).backward()
    return time.perf_counter() - started


def held(step: Step, z_s: Tensor, z_t: Tensor) -> int:
    """Bytes above the inputs and the gradient of z_s."""
    z_s = z_s.detach().requires_grad_()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps have freed counts as free
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    step(z_s, z_t).backward()
    return max(0, resident("VmHWM") - before - z_s.numel() * z_s.element_size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the small shapes; large ones take a third")
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("N", "D_S", "D_T"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results: list[dict[str, object]] = []
    console = Console(width=100 if not sys.stdout.isatty() else None)
    for n, d_s, d_t in args.shape or SHAPES:
        z_s, z_t = torch.randn(n, d_s), torch.randn(n, d_t)
        forms = steps(n, d_s, d_t)
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        memory = {name: held(step, z_s, z_t) for name, step in forms.items()}
        for index in range((args.rounds if n <= POOLED else max(3, args.rounds // 3)) + 1):
            for name, step in forms.items():
                if "CRD" in name and index > 3:
                    continue  # seconds each
                took = timed(step, z_s, z_t)
                if index:  # the first round warms up
                    seconds[name].append(took)
        table = Table("form", "ms", "quartiles", "MB above inputs", title=f"N {n:,}, {d_s} -> {d_t}")
        for name in forms:
            low, middle, high = (1e3 * value for value in statistics.quantiles(seconds[name], n=4))
            mb = memory[name] / 1e6
            results.append({"n": n, "d_s": d_s, "d_t": d_t, "form": name, "ms": round(middle, 2), "mb": round(mb, 1)})
            table.add_row(name, f"{middle:.1f}", f"{low:.1f} to {high:.1f}", f"{mb:.0f}")
        console.print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        device = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        args.out.write_text(json.dumps({"device": device, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
