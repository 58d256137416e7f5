"""Fit a damped oscillation to noisy measurements, with bounds on its parameters: by L-BFGS, and by Adam.

python examples/oscillator.py [--steps 3000]
"""

from __future__ import annotations

import argparse

import numpy as np

import fastvar as fv

NAMES = ["amplitude", "damping", "frequency", "phase"]
TRUE = np.array([2.0, 0.3, 5.0, 0.5])
BOX = fv.constraints.Box(low=[0.0, 0.0, 4.0, -np.pi], high=[10.0, 2.0, 6.0, np.pi])  # physics allows no others
START = [1.0, 1.0, 4.5, 0.0]


def problem(noise: float = 0.05):
    """Return the parameters, and a function that returns the mean squared error and its gradient."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 6, 300)
    p = fv.Variable(START, name="p", constraint=BOX)

    def model(amplitude, damping, frequency, phase):
        return amplitude * np.exp(-damping * t) * np.cos(frequency * t + phase)

    measured = model(*TRUE) + rng.normal(0, noise, t.size)

    def loss_and_gradient():
        amplitude, damping, frequency, phase = p.value
        x = model(*p.value)
        quadrature = amplitude * np.exp(-damping * t) * np.sin(frequency * t + phase)
        error = x - measured
        by_parameter = np.array([x / amplitude if amplitude else x * 0, -t * x, -t * quadrature, -quadrature])
        return (error**2).mean(), [2 * by_parameter @ error / t.size]

    return p, loss_and_gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()

    p, loss_and_gradient = problem()
    print(fv.check_gradients(loss_and_gradient, [p]))
    optimizer = fv.optimizers.LBFGS(max_iter=100)
    optimizer.minimize(loss_and_gradient, [p])
    print(optimizer.result)
    print("L-BFGS:", ", ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, p.value, strict=True)))

    p, loss_and_gradient = problem()
    adam = fv.optimizers.Adam(fv.schedules.CosineDecay(0.02, arguments.steps))
    for _ in range(arguments.steps):
        adam.minimize(loss_and_gradient, [p])
    print("Adam:", ", ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, p.value, strict=True)))


if __name__ == "__main__":
    main()
