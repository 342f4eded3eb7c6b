"""One-shot pruning."""
