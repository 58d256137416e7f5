"""Factorise a table of ratings. Each step changes only the rows of the users and items in its batch.

python examples/factorisation.py [--steps 3000]
"""

from __future__ import annotations

import argparse

import numpy as np

import fastvar as fv

USERS, ITEMS, RANK, BATCH = 2000, 500, 8, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    tastes, traits = rng.normal(size=(USERS, RANK)), rng.normal(size=(ITEMS, RANK)) / np.sqrt(RANK)
    user, item = rng.integers(USERS, size=100_000), rng.integers(ITEMS, size=100_000)  # a tenth of the table
    rating = (tastes[user] * traits[item]).sum(axis=1).astype(np.float32)
    held_out = slice(90_000, None)

    start = fv.initializers.RandomNormal(stddev=0.3, seed=rng)
    p = fv.Variable(start, shape=(USERS, RANK), name="users")
    q = fv.Variable(start, shape=(ITEMS, RANK), name="items")

    def error(rows):
        return (p.value[user[rows]] * q.value[item[rows]]).sum(axis=1) - rating[rows]

    optimizer = fv.optimizers.Adam(fv.schedules.CosineDecay(0.05, arguments.steps))
    optimizer.build([p, q])
    print(f"Before: error {np.sqrt((error(held_out) ** 2).mean()):.3f}")
    for _ in range(arguments.steps):
        rows = rng.integers(90_000, size=BATCH)
        back = 2 * error(rows)[:, None] / BATCH
        of_users = fv.IndexedSlices(values=back * q.value[item[rows]], indices=user[rows])  # duplicates add up
        of_items = fv.IndexedSlices(values=back * p.value[user[rows]], indices=item[rows])
        optimizer.apply([of_users, of_items], [p, q])
    print(f"After: error {np.sqrt((error(held_out) ** 2).mean()):.3f} on ratings that were held out")


if __name__ == "__main__":
    main()
