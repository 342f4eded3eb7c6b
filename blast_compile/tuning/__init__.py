"""Choice of kernel configurations: search space, cost model, timing and plans."""
