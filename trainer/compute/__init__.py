"""How this machine computes a step, and how fast.

precision     number types: autocast, the scaled loss of float16
compilation   torch.compile and the cache that all runs share
determinism   the same bits each time
recompute     activations that are not kept
rows          a micro-batch by threads with rows of their own, on a CPU
allocation    memory that is kept once it is freed
startup       what need not be imported before the first step
throughput    tokens per second, share of the device's peak, memory
profiling     a few steps in torch.profiler

Models and optimizers import some of these, and others import models: each is imported by itself.
"""
