"""The version of the package, for everything that writes files and for `pyproject.toml`."""

__version__ = "0.1.0"
