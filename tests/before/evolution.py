"""examples/evolution.py without fastvar: Adam written in NumPy."""

from __future__ import annotations

import argparse

import numpy as np

from examples.evolution import PAIRS, SIGMA, STEPS, returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=40)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    w, m, v = np.zeros(4), np.zeros(4), np.zeros(4)
    for generation in range(arguments.generations):
        noise = rng.normal(size=(PAIRS, 4))
        noise = np.concatenate([noise, -noise])
        found = returns(w + SIGMA * noise, rng)
        ranks = found.argsort().argsort() / (len(found) - 1) - 0.5
        gradient = -(ranks @ noise) / (len(noise) * SIGMA)
        t = generation + 1
        m += 0.1 * (gradient - m)
        v += 0.001 * (gradient**2 - v)
        w -= 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        if generation % 10 == 9:
            print(f"generation {generation + 1}: mean return {found.mean():.0f} of {STEPS}")
    tested = np.mean([returns(w[None], rng)[0] for _ in range(20)])
    print(f"The policy keeps the pole up for {tested:.0f} of {STEPS} steps")


if __name__ == "__main__":
    main()
