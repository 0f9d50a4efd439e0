"""Tokens, and the batches made of them. :mod:`trainer.data.sources` does without torch."""
