"""Carrying out runs: in a worker of a sweep, or in this process."""
