"""A task whose module cannot be imported."""

raise RuntimeError("no such library")
