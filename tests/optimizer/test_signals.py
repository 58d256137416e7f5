"""After Ctrl-C at any instant, a step has happened and is counted, or neither."""

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import contents
from tests.support.interrupts import check_at_random_instants, timers


class Numpy(fv.Optimizer):
    """Gradient descent in NumPy: Python code runs in the middle of the step."""

    slots = ("total",)

    def update(self, variable, gradient, slots, hyper):
        slots.total += gradient
        variable -= gradient


@timers
@pytest.mark.parametrize("steps", [None, 2], ids=["every", "accumulating"])
@pytest.mark.parametrize("make", [lambda **o: fv.optimizers.SGD(1.0, **o), Numpy], ids=["compiled", "numpy"])
def test_an_interrupted_step_is_whole_or_nothing(make, steps) -> None:
    optimizer, w = make(gradient_accumulation_steps=steps), fv.Variable(np.zeros(20_000))
    gradients = [np.ones(20_000)]
    optimizer.apply(gradients, [w])

    def check() -> None:
        assert (w.value == -optimizer.iterations).all()
        if steps:
            assert (optimizer.slot(w, "gradient_accumulator").value == optimizer._steps % 2).all()

    check_at_random_instants(lambda: optimizer.apply(gradients), check, 2.0)


SEVERAL_PASSES = {
    "lamb": lambda **o: fv.optimizers.Lamb(0.125, **o),
    "prodigy": lambda **o: fv.optimizers.Prodigy(initial_distance=0.125, **o),
    "adafactor": lambda **o: fv.optimizers.Adafactor(0.125, **o),
    "clipped lamb": lambda **o: fv.optimizers.Lamb(0.125, adaptive_clipnorm=0.01, use_ema=True, **o),
}


@timers
@pytest.mark.parametrize("steps", [None, 2], ids=["every", "accumulating"])
@pytest.mark.parametrize("make", SEVERAL_PASSES.values(), ids=SEVERAL_PASSES)
def test_an_interrupted_step_of_several_passes_is_whole_or_nothing(make, steps) -> None:
    start = np.linspace(-1, 1, 2000).reshape(40, 50)
    (w, optimizer), (v, twin) = (
        (fv.Variable(start, name="w"), make(gradient_accumulation_steps=steps)) for _ in range(2)
    )
    gradients = [np.cos(start)]
    optimizer.build([w])
    twin.build([v])

    def check() -> None:
        while twin._steps < optimizer._steps:
            twin.apply(gradients)
        assert contents(optimizer, [w]) == contents(twin, [v])

    check_at_random_instants(lambda: optimizer.apply(gradients), check, 1.5)
