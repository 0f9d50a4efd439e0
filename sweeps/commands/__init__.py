"""``python -m sweeps``: what each command does."""
