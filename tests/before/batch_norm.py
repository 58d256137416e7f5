"""examples/batch_norm.py without fastvar: the same network, training and restarts in plain NumPy.

python -m tests.before.batch_norm [--folder runs/before] [--epochs 60] [--patience 6]
"""

from __future__ import annotations

import argparse
import os
import pickle
import signal
from pathlib import Path

import numpy as np

from examples.mlp import batches, digits


class Layer:
    trained: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Dense(Layer):
    trained = ("kernel", "bias")

    def __init__(self, inputs, outputs, rng, l2=0.0):
        self.kernel = rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)
        self.bias = np.zeros(outputs, np.float32)
        self.l2 = l2

    def forward(self, x):
        self.x = x
        return x @ self.kernel + self.bias

    def backward(self, dy):
        self.kernel_grad = self.x.T @ dy
        self.bias_grad = dy.sum(axis=0)
        return dy @ self.kernel.T


class BatchNorm(Layer):
    trained, kept = ("gain", "offset"), ("mean", "variance")

    def __init__(self, size):
        self.gain, self.offset = np.ones(size, np.float32), np.zeros(size, np.float32)
        self.mean, self.variance = np.zeros(size, np.float32), np.ones(size, np.float32)
        self.training = True

    def forward(self, x):
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean(axis=0), x.var(axis=0)
            self.mean += 0.1 * (mean - self.mean)
            self.variance += 0.1 * (variance - self.variance)
        self.scale = 1 / np.sqrt(variance + 1e-3)
        self.x = (x - mean) * self.scale
        return self.x * self.gain + self.offset

    def backward(self, dy):
        self.gain_grad, self.offset_grad = (dy * self.x).sum(axis=0), dy.sum(axis=0)
        dx = dy * self.gain
        return self.scale * (dx - dx.mean(axis=0) - self.x * (dx * self.x).mean(axis=0))


class Tanh(Layer):
    def forward(self, x):
        self.y = np.tanh(x)
        return self.y

    def backward(self, dy):
        return dy * (1 - self.y**2)


class Net:
    def __init__(self, rng):
        self.norm = BatchNorm(64)
        self.head = Dense(64, 10, rng, l2=1e-4)
        self.layers = [Dense(64, 64, rng), self.norm, Tanh(), self.head]

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def loss(self, x, labels):
        logits = self.forward(x)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = float(-np.log(p[rows, labels] + 1e-12).mean())
        p[rows, labels] -= 1
        dy = p / np.float32(len(labels))
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return loss

    def accuracy(self, x, labels):
        return float((self.forward(x).argmax(axis=1) == labels).mean())

    def trained(self):
        return {f"{i}.{name}": (layer, name) for i, layer in enumerate(self.layers) for name in layer.trained}

    def weights(self):
        named = ((i, layer, name) for i, layer in enumerate(self.layers) for name in layer.trained + layer.kept)
        return {f"{i}.{name}": getattr(layer, name) for i, layer, name in named}

    def load(self, weights):
        for name, array in self.weights().items():
            array[...] = weights[name]


class AdamW:
    def __init__(self, net, rate, weight_decay):
        self.net, self.rate, self.weight_decay, self.t = net, rate, weight_decay, 0
        arrays = {key: getattr(layer, name) for key, (layer, name) in net.trained().items()}
        self.m = {key: np.zeros_like(array) for key, array in arrays.items()}
        self.v = {key: np.zeros_like(array) for key, array in arrays.items()}

    def step(self):
        self.t += 1
        rate = self.rate * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        for key, (layer, name) in self.net.trained().items():
            w, g, m, v = getattr(layer, name), getattr(layer, name + "_grad"), self.m[key], self.v[key]
            if name == "kernel" and layer.l2:
                g = g + 2 * layer.l2 * w
            w -= self.rate * self.weight_decay * w
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w -= rate * m / (np.sqrt(v) + 1e-7)


def check_gradients(net, x, y, delta=1e-2):
    """Compare some derivatives with central differences, in single precision."""
    net.loss(x, y)
    for key, (layer, name) in net.trained().items():
        w, g = getattr(layer, name).reshape(-1), getattr(layer, name + "_grad").reshape(-1).copy()
        for i in range(0, w.size, max(w.size // 5, 1)):
            before = w[i]
            w[i] = before + delta
            above = net.loss(x, y)
            w[i] = before - delta
            below = net.loss(x, y)
            w[i] = before
            np.testing.assert_allclose(g[i], (above - below) / (2 * delta), atol=1e-3, err_msg=f"{key}[{i}]")


def save(path, state):
    """Write a file that is whole or is not there."""
    with open(f"{path}.new", "wb") as file:
        pickle.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def saved(folder):
    return sorted(folder.glob("ckpt-*.pkl"), key=lambda path: int(path.stem.partition("-")[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="runs/before", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patience", type=int, default=6)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    (x, y), held_out = digits(rng)
    net = Net(rng)
    check_gradients(net, x[:32], y[:32])
    net.norm.mean[:], net.norm.variance[:] = 0, 1  # which the check has moved
    optimizer = AdamW(net, 3e-3, weight_decay=1e-3)
    progress = {"epoch": 0, "best": 1e9, "waited": 0}
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(saved(arguments.folder)):
        try:
            state = pickle.loads(path.read_bytes())
        except (EOFError, pickle.UnpicklingError):  # damaged
            continue
        net.load(state["weights"])
        optimizer.m, optimizer.v, optimizer.t = state["optimizer"]
        rng.bit_generator.state, progress = state["rng"], state["progress"]
        print(f"Resumed after epoch {progress['epoch']} from {path}")
        break
    while progress["epoch"] < arguments.epochs and progress["waited"] < arguments.patience:
        for rows in batches(len(y), 32, rng):
            net.loss(x[rows], y[rows])
            optimizer.step()
        net.norm.training = False
        loss = net.loss(*held_out)
        net.norm.training = True
        progress["epoch"] += 1
        progress["waited"] = 0 if loss < progress["best"] else progress["waited"] + 1
        state = {"weights": net.weights(), "optimizer": (optimizer.m, optimizer.v, optimizer.t), "loss": loss}
        state |= {"rng": rng.bit_generator.state, "progress": progress}
        if loss < progress["best"]:
            progress["best"] = loss
            save(arguments.folder / "best.pkl", state)
        save(arguments.folder / f"ckpt-{progress['epoch']}.pkl", state)
        for path in saved(arguments.folder)[:-2]:
            path.unlink()
        penalty = 1e-4 * float((net.head.kernel**2).sum())
        print(f"epoch {progress['epoch']}: held-out loss {loss:.4f}, penalty {penalty:.4f}")
        if stopping:  # SIGTERM: the job is preempted
            return
    net.load(pickle.loads((arguments.folder / "best.pkl").read_bytes())["weights"])
    net.norm.training = False
    print(f"The best weights, of {progress['epoch']} epochs: held-out accuracy {net.accuracy(*held_out):.2%}")


if __name__ == "__main__":
    main()
