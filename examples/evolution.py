"""Evolution strategies: balance a pole on a cart without gradients of the simulation.

python examples/evolution.py [--generations 40]

The gradient of the mean return is estimated from pairs of mirrored perturbations, and Adam takes the steps.
Salimans et al., Evolution Strategies as a Scalable Alternative to Reinforcement Learning,
https://arxiv.org/abs/1703.03864, 2017.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastvar as fv

STEPS, PAIRS, SIGMA = 300, 32, 0.3


def returns(policies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for how many steps each linear policy (a row of weights) keeps the pole up and the cart in range."""
    state = np.tile(rng.uniform(-0.05, 0.05, 4), (len(policies), 1))
    alive, total = np.ones(len(policies), bool), np.zeros(len(policies))
    for _ in range(STEPS):
        _, v, angle, spin = state.T
        force = np.where((policies * state).sum(axis=1) > 0, 10.0, -10.0)
        push = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
        pull = 9.8 * np.sin(angle) - np.cos(angle) * push
        angular = pull / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        linear = push - 0.05 * angular * np.cos(angle) / 1.1
        state = state + 0.02 * np.stack([v, linear, spin, angular], axis=1)
        alive &= (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 0.21)
        state[~alive] = 0
        total += alive
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=40)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    w = fv.Variable(np.zeros(4), name="policy")
    optimizer = fv.optimizers.Adam(0.1)
    for generation in range(arguments.generations):
        noise = rng.normal(size=(PAIRS, 4))
        noise = np.concatenate([noise, -noise])
        found = returns(w.value + SIGMA * noise, rng)
        ranks = found.argsort().argsort() / (len(found) - 1) - 0.5  # so that no lucky policy outweighs all others
        optimizer.apply([-(ranks @ noise) / (len(noise) * SIGMA)], [w])  # down the gradient of the loss
        if generation % 10 == 9:
            print(f"generation {generation + 1}: mean return {found.mean():.0f} of {STEPS}")
    tested = np.mean([returns(w.value[None], rng)[0] for _ in range(20)])
    print(f"The policy keeps the pole up for {tested:.0f} of {STEPS} steps")


if __name__ == "__main__":
    main()
