"""Loss curves
===========

Ten optimizers on one problem: a network with one hidden layer tells handwritten digits apart. Each has a learning
rate that suits it; gradients are written by hand. All see the same batches.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import fastvar as fv

images, labels = load_digits(return_X_y=True)
x, y = (images / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels]


def loss_and_gradients(w, b, v, batch):
    hidden = np.tanh(x[batch] @ w + b)
    scores = hidden @ v
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - y[batch]) / len(batch)
    below = (error @ v.value.T) * (1 - hidden**2)
    loss = -np.log((p * y[batch]).sum(axis=1) + 1e-7).mean()
    return loss, [x[batch].T @ below, below.sum(axis=0), hidden.T @ error]


def curve(optimizer, steps=300):
    rng = np.random.default_rng(0)
    w = fv.Variable(fv.initializers.GlorotUniform(seed=0), shape=(64, 32))
    b = fv.Variable(fv.initializers.Zeros(), shape=32)
    v = fv.Variable(fv.initializers.GlorotUniform(seed=1), shape=(32, 10))
    losses = []
    for _ in range(steps):
        batch = rng.integers(0, len(x), 128)
        losses.append(optimizer.minimize(lambda batch=batch: loss_and_gradients(w, b, v, batch), [w, b, v]))
    return np.convolve(losses, np.ones(10) / 10, "valid")


optimizers = {
    "SGD": fv.optimizers.SGD(0.5),
    "SGD, momentum": fv.optimizers.SGD(0.1, momentum=0.9),
    "RMSprop": fv.optimizers.RMSprop(0.003),
    "Adagrad": fv.optimizers.Adagrad(0.05),
    "Adam": fv.optimizers.Adam(0.01),
    "AdamW": fv.optimizers.AdamW(0.01, weight_decay=0.01),
    "Lion": fv.optimizers.Lion(0.001),
    "Adan": fv.optimizers.Adan(0.02),
    "Muon": fv.optimizers.Muon(0.01),
    "Prodigy": fv.optimizers.Prodigy(1.0),
}
figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
for number, (name, optimizer) in enumerate(optimizers.items()):
    ax.plot(curve(optimizer), label=name, linestyle="--" if number > 4 else "-", color=f"C{number % 5}")
ax.set_yscale("log")
ax.set_xlabel("update")
ax.set_ylabel("loss, mean of 10")
ax.legend()
plt.show()
