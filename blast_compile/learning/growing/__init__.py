"""Prune-and-grow while a model trains."""
