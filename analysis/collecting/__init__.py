"""Run directories → store: what is there, what is new, and its rows."""
