"""How long a training step takes: Limbeck's own against the floor of its two networks, and against peers."""

from limbeck.benchmark.run import Benchmark, benchmark

__all__ = ["Benchmark", "benchmark"]
