"""From a spec to something callable, once."""
