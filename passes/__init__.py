"""Rewrites of the Dynamo graph: one rewrite a file, their order in one tuple."""
