"""The cells of examples/notebook.ipynb without fastvar: NumPy, pandas and matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot

from examples.mlp import batches, digits
from tests.before.batch_norm import AdamW, Net, check_gradients, save


def rate(step):
    if step < 50:
        return 3e-3 * step / 50
    return 1.5e-3 * (1 + np.cos(np.pi * min((step - 50) / 400, 1)))


def table_of(net):
    rows = [(name, w.shape, w.dtype, w.nbytes) for name, w in net.weights().items()]
    table = pd.DataFrame(rows, columns=["name", "shape", "dtype", "bytes"]).set_index("name")
    print(f"{sum(w.size for w in net.weights().values()):,} parameters, {table['bytes'].sum():,} bytes")
    return table


def clip(net, limit):
    norm = np.sqrt(sum((getattr(layer, f"{name}_grad") ** 2).sum() for layer, name in net.trained().values()))
    if norm > limit:
        for layer, name in net.trained().values():
            setattr(layer, f"{name}_grad", getattr(layer, f"{name}_grad") * (limit / norm))


def main() -> None:
    rng = np.random.default_rng(0)
    (x, y), held_out = digits(rng)
    net = Net(rng)
    print(table_of(net))

    optimizer = AdamW(net, 0.0, weight_decay=1e-3)
    print(
        pd.Series({"rate": optimizer.rate, "weight_decay": optimizer.weight_decay, "beta_1": 0.9, "beta_2": 0.999})
    )
    pyplot.plot([rate(step) for step in range(500)])
    pyplot.figure()
    check_gradients(net, x[:32], y[:32])

    folder, rows_of_history = Path("runs/before_notebook"), []
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, 11):
        for rows in batches(len(y), 32, rng):
            net.loss(x[rows], y[rows])
            clip(net, 5.0)
            optimizer.rate = rate(optimizer.t)
            optimizer.step()
        net.norm.training = False
        rows_of_history.append((epoch, optimizer.t, net.loss(*held_out), net.accuracy(*held_out)))
        net.norm.training = True
        save(folder / f"epoch-{epoch}.pkl", net.weights())
        for old in range(1, epoch - 2):
            (folder / f"epoch-{old}.pkl").unlink(missing_ok=True)
        if rows_of_history[-1][2] == min(row[2] for row in rows_of_history):
            save(folder / "best.pkl", net.weights())
    history = pd.DataFrame(rows_of_history, columns=["epoch", "step", "loss", "accuracy"]).set_index("step")
    history[["loss", "accuracy"]].plot()
    print(history)
    print(sorted(path.name for path in folder.iterdir()))
    print(pd.Series(net.head.kernel.reshape(-1)).describe())
    net.load(pd.read_pickle(folder / "best.pkl"))
    net.norm.training = False
    print(f"held-out accuracy {net.accuracy(*held_out):.2%}")


if __name__ == "__main__":
    main()
