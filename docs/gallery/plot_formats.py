"""Storage formats
===============

Slots in 16 and 8 bits take a half and a quarter of the memory. They are rounded at random, up or down, so that the
mean is right: the second moment of Adam stays close to that in float32, though each number has a few bits only.
See :doc:`/formats`.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastvar as fv

STEPS, SIZE = 2000, 8192
formats = {"float32": None, "bfloat16": "bfloat16", "8 bits": "8bit"}
variables = {name: fv.Variable(np.zeros(SIZE, np.float32), name=name) for name in formats}
adams = {name: fv.optimizers.Adam(1e-3, slot_dtype=kind) for name, kind in formats.items()}
errors = {name: [] for name in formats}
rng = np.random.default_rng(0)
for _ in range(STEPS):
    gradient = rng.standard_normal(SIZE, np.float32)  # the same for all
    for name, adam in adams.items():
        adam.apply([gradient], [variables[name]])
    exact = np.asarray(adams["float32"].slot(variables["float32"], "velocity"))
    for name, adam in adams.items():
        stored = np.asarray(adam.slot(variables[name], "velocity"))
        errors[name].append(np.median(abs(stored / exact - 1)))

# %%
# The error of an element settles, and does not grow: what is rounded at random averages out.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name in ("bfloat16", "8 bits"):
    left.plot(errors[name], label=name)
left.set_xlabel("update")
left.set_ylabel("median relative error of second moments")
left.set_ylim(0)
left.legend()
bytes_of = {name: adam.slot(variables[name], "velocity").nbytes / SIZE for name, adam in adams.items()}
right.bar(list(bytes_of), list(bytes_of.values()))
right.set_ylabel("bytes an element")
plt.show()

# %%
# What a slot of 8 bits can hold: 128 magnitudes of each sign, dense near 0.

slot = adams["8 bits"].slot(variables["8 bits"], "momentum")
figure, ax = plt.subplots(figsize=(9, 2.5), layout="constrained")
ax.eventplot(np.unique(np.asarray(slot[:256])), linewidths=0.6)
ax.set_yticks([])
ax.set_xlabel("numbers of one group of 256 elements, of the first moment")
plt.show()
