"""Triton kernels: which serves a spec, and how it is launched."""
