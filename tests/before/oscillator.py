"""The fits of examples/oscillator.py without fastvar: by SciPy's L-BFGS-B, and by Adam written in NumPy."""

from __future__ import annotations

import argparse

import numpy as np
from scipy.optimize import Bounds, approx_fprime, minimize

NAMES = ["amplitude", "damping", "frequency", "phase"]
TRUE = np.array([2.0, 0.3, 5.0, 0.5])
LOW, HIGH = np.array([0.0, 0.0, 4.0, -np.pi]), np.array([10.0, 2.0, 6.0, np.pi])  # physics allows no others
START = np.array([1.0, 1.0, 4.5, 0.0])


def problem(noise: float = 0.05):
    """Return a function that returns the mean squared error and its gradient."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 6, 300)

    def model(amplitude, damping, frequency, phase):
        return amplitude * np.exp(-damping * t) * np.cos(frequency * t + phase)

    measured = model(*TRUE) + rng.normal(0, noise, t.size)

    def loss_and_gradient(p):
        amplitude, damping, frequency, phase = p
        x = model(*p)
        quadrature = amplitude * np.exp(-damping * t) * np.sin(frequency * t + phase)
        error = x - measured
        by_parameter = np.array([x / amplitude if amplitude else x * 0, -t * x, -t * quadrature, -quadrature])
        return (error**2).mean(), 2 * by_parameter @ error / t.size

    return loss_and_gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()

    loss_and_gradient = problem()
    differences = approx_fprime(START, lambda p: loss_and_gradient(p)[0], 1e-6)
    np.testing.assert_allclose(loss_and_gradient(START)[1], differences, rtol=1e-3, atol=1e-5)
    result = minimize(loss_and_gradient, START, jac=True, method="L-BFGS-B", bounds=Bounds(LOW, HIGH))
    print(result.success, result.message)
    print("L-BFGS:", ", ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, result.x, strict=True)))

    p, m, v = START.copy(), np.zeros(4), np.zeros(4)
    for t in range(1, arguments.steps + 1):
        rate = 0.01 * (1 + np.cos(np.pi * (t - 1) / arguments.steps))
        _, gradient = loss_and_gradient(p)
        m += 0.1 * (gradient - m)
        v += 0.001 * (gradient**2 - v)
        p -= rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        np.clip(p, LOW, HIGH, out=p)
    print("Adam:", ", ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, p, strict=True)))


if __name__ == "__main__":
    main()
