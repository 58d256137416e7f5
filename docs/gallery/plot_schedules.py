"""Schedules
=========

The learning rate of each schedule over 100 iterations.
"""

import matplotlib.pyplot as plt

from fastvar import schedules

rates = {
    "CosineDecay": schedules.CosineDecay(0.1, decay_steps=100),
    "CosineDecay after a Warmup": schedules.Warmup(schedules.CosineDecay(0.1, decay_steps=80), warmup_steps=20),
    "CosineDecayRestarts": schedules.CosineDecayRestarts(0.1, first_decay_steps=20),
    "Cyclic": schedules.Cyclic(0.01, 0.1, step_size_up=20),
    "ExponentialDecay": schedules.ExponentialDecay(0.1, decay_steps=50, decay_rate=0.1),
    "InverseTimeDecay": schedules.InverseTimeDecay(0.1, decay_steps=10, decay_rate=0.5),
    "OneCycle": schedules.OneCycle(0.1, total_steps=101),
    "PiecewiseConstantDecay": schedules.PiecewiseConstantDecay([30, 60], [0.1, 0.03, 0.01]),
    "PolynomialDecay": schedules.PolynomialDecay(0.1, decay_steps=100, end_learning_rate=0.01, power=2.0),
}
figure, axes = plt.subplots(3, 3, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
for ax, (name, schedule) in zip(axes.flat, rates.items(), strict=True):
    ax.plot([schedule(iteration) for iteration in range(101)])
    ax.set_title(name, fontsize="medium")
for ax in axes[-1]:
    ax.set_xlabel("iteration")
plt.show()
