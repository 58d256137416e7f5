"""examples/factorisation.py without fastvar: Adam on the rows of a batch, written in NumPy."""

from __future__ import annotations

import argparse

import numpy as np

USERS, ITEMS, RANK, BATCH = 2000, 500, 8, 256


class LazyAdam:
    """Adam that changes only the rows with a gradient."""

    def __init__(self, w, rate, steps):
        self.w, self.m, self.v, self.t = w, np.zeros_like(w), np.zeros_like(w), 0
        self.rate, self.steps = rate, steps

    def step(self, rows, values):
        rows, places = np.unique(rows, return_inverse=True)
        gradient = np.zeros((len(rows), values.shape[1]), self.w.dtype)
        np.add.at(gradient, places, values)  # duplicates add up
        m = self.m[rows] + 0.1 * (gradient - self.m[rows])
        v = self.v[rows] + 0.001 * (gradient**2 - self.v[rows])
        self.m[rows], self.v[rows] = m, v
        rate = self.rate / 2 * (1 + np.cos(np.pi * self.t / self.steps))
        self.t += 1
        self.w[rows] -= rate * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t) * m / (np.sqrt(v) + 1e-7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    tastes, traits = rng.normal(size=(USERS, RANK)), rng.normal(size=(ITEMS, RANK)) / np.sqrt(RANK)
    user, item = rng.integers(USERS, size=100_000), rng.integers(ITEMS, size=100_000)  # a tenth of the table
    rating = (tastes[user] * traits[item]).sum(axis=1).astype(np.float32)
    held_out = slice(90_000, None)

    p = rng.normal(0, 0.3, (USERS, RANK)).astype(np.float32)
    q = rng.normal(0, 0.3, (ITEMS, RANK)).astype(np.float32)

    def error(rows):
        return (p[user[rows]] * q[item[rows]]).sum(axis=1) - rating[rows]

    users, items = LazyAdam(p, 0.05, arguments.steps), LazyAdam(q, 0.05, arguments.steps)
    print(f"Before: error {np.sqrt((error(held_out) ** 2).mean()):.3f}")
    for _ in range(arguments.steps):
        rows = rng.integers(90_000, size=BATCH)
        back = 2 * error(rows)[:, None] / BATCH
        of_users, of_items = back * q[item[rows]], back * p[user[rows]]
        users.step(user[rows], of_users)
        items.step(item[rows], of_items)
    print(f"After: error {np.sqrt((error(held_out) ** 2).mean()):.3f} on ratings that were held out")


if __name__ == "__main__":
    main()
