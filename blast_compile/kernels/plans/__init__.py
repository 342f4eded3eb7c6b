"""Tuned configs, as they are kept, found and read."""
