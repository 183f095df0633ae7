"""Many runs together: comparisons, sweeps, the tables of the paper."""
