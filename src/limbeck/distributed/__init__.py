"""Every operation that crosses processes: collectives, models in shares, and processes that meet."""
