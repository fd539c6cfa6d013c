"""Counter-based random numbers: every draw is a pure function of what it is for."""

import numpy as np

SAMPLE, ORDER, REPLACEMENT, NOISE = range(4)  # independent streams under one seed


def generator(stream: int, seed: int, epoch: int, number: int = 0) -> np.random.Generator:
    """A counter-based generator that depends on nothing but its arguments (number < 2⁴⁰, epoch < 2²⁴)."""
    return np.random.Generator(
        np.random.Philox(key=[seed, (epoch << 40) | number], counter=[0, 0, 0, stream])
    )
