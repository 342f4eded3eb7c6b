"""Attention, `torch.ops.blast.attention`: lists of blocks of keys, rules as data, the log-sum-exp beside the result."""
