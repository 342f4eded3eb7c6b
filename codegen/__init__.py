"""Kernel generation: a spec goes in, source text comes out, and `build` turns text into something callable."""
