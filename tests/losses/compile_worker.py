"""Compile each loss on its own, compare with the plain value, print the differences as JSON."""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck import losses

LABELS = torch.arange(6) % 4


def as_map(z: Tensor) -> Tensor:
    return z.reshape(2, -1, 2, 3)


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_error": losses.squared_error,
    "mean_squared_error": losses.mean_squared_error,
    "l1": losses.l1,
    "smooth_l1": losses.smooth_l1,
    "cosine": losses.cosine,
    "log_sum": losses.log_sum,
    "feature_kl": lambda a, t: losses.feature_kl(a, t, temperature=2.0),
    "gaussian_wasserstein": lambda a, t: losses.gaussian_wasserstein(a.unflatten(0, (2, 3)), t.unflatten(0, (2, 3))),
    "correlation_power": lambda a, t: losses.correlation_power(losses.correlation(a, t), power=2.0),
    "log_correlation": lambda a, t: losses.log_correlation(losses.correlation(a, t)),
    "kl_divergence": losses.kl_divergence,
    "standardized_kl": losses.standardized_kl,
    "decoupled_kl": lambda a, t: losses.decoupled_kl(a, t, LABELS),
    "normalized_kl": lambda a, t: losses.normalized_kl(a, t, LABELS),
    "pearson_distance": losses.pearson_distance,
    "multi_level_kl": losses.multi_level_kl,
    "similarity_preserving": losses.similarity_preserving,
    "relational_distance": losses.relational_distance,
    "relational_angle": losses.relational_angle,
    "relational": losses.relational,
    "probabilistic_transfer": losses.probabilistic_transfer,
    "correlation_congruence": losses.correlation_congruence,
    "decorrelation": losses.decorrelation,
    "relational_angle in blocks": lambda a, t: losses.relational_angle(a.repeat(25, 2), t.repeat(25, 1)),
    "attention_transfer": lambda a, t: losses.attention_transfer(as_map(a), as_map(t)),
    "neuron_selectivity": lambda a, t: losses.neuron_selectivity(as_map(a), as_map(t)),
    "neuron_selectivity, wide": lambda a, t: losses.neuron_selectivity(as_map(a).mT, as_map(t.repeat(1, 9))),
    "hierarchical_context": lambda a, t: losses.hierarchical_context(as_map(a), as_map(t)),
}


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    found: dict[str, float | str] = {}
    for name, loss in CASES.items():
        torch.compiler.reset()
        try:
            value = torch.compile(loss, backend="aot_eager", fullgraph=True)(z_s, z_t)
            found[name] = float((value - loss(z_s, z_t)).abs())
        except Exception as error:  # whatever the compiler raises is what the test shall show
            found[name] = str(error).splitlines()[0]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
