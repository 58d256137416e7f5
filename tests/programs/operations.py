"""The operations of random programs over the public API.

Every choice comes from a generator seeded by the program and the position of the operation. So a program does the
same on any instruction set and number of threads, with and without round trips.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastvar as fv
import fastvar.torch
from fastvar.hyper import number
from tests.support.cases import CASES
from tests.support.torch_cases import FEW

SHAPES = [(), (3,), (17,), (0, 3), (7, 5), (40, 3), (2, 3, 4), (33, 31)]
LARGE = (70_001,)  # enough for several threads


class Own(fv.Optimizer):
    """A user's rule, which fails if a gradient is large."""

    learning_rate: float = number(default=0.125, low=0)
    friction: float = number(default=0.5, low=0, high=1)
    slots = ("velocity",)

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        slots.velocity = hyper.friction * slots.velocity - hyper.learning_rate * gradient
        if gradient.size and np.nanmax(np.abs(gradient)) > 50:
            raise ArithmeticError("too steep")
        variable += slots.velocity


def loss_scaled(**options: Any) -> fv.Optimizer:
    return fv.optimizers.LossScaleOptimizer(fv.optimizers.Adam(**options), 4.0, dynamic_growth_steps=3)


MAKERS: list[tuple[Callable[..., fv.Optimizer], dict[str, Any]]] = [
    *((getattr(fv.optimizers, case.optimizer), case.options) for case in CASES),
    *((getattr(fv.torch, name), options) for name, options in FEW),
    *[(Own, {}), (loss_scaled, {"learning_rate": 0.125})] * 2,
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {},
    {"weight_decay": 0.125},
    {"clipnorm": 0.5},
    {"clipvalue": 0.25},
    {"global_clipnorm": 0.75},
    {"adaptive_clipnorm": 0.25},
    {"use_ema": True, "ema_momentum": 0.75},
    {"use_ema": True, "ema_overwrite_frequency": 3, "weight_decay": 0.25, "global_clipnorm": 1.0},
    {"gradient_accumulation_steps": 2},
    {"gradient_accumulation_steps": 3, "clipnorm": 0.5, "use_ema": True, "loss_scale_factor": 4.0},
    {"nonfinite": "skip"},
    {"nonfinite": "raise", "weight_decay": 0.125},
    {"nonfinite": "skip", "gradient_accumulation_steps": 2, "global_clipnorm": 1.0},
]
VALUES: list[Any] = [
    *[None, True, False, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5, -1.0, float("nan"), 2, "skip", "raise", "ignore"],
    *[(0.5, 0.75), (0.25, 1.5), fv.schedules.CosineDecay(0.25, 20), fv.schedules.ExponentialDecay(0.5, 5, 0.5)],
]
REGULARIZERS = [None, fv.regularizers.L1(0.125), fv.regularizers.L2(0.25), fv.regularizers.L1L2(0.125, 0.0625)]


def halved(w: Any) -> Any:
    """A user's constraint."""
    return np.where(np.abs(w) > 4, w / 2, w)


def refusing(w: Any) -> Any:
    """A constraint that fails once training goes on."""
    raise ArithmeticError("no projection today")


def flattened(w: Any) -> Any:
    """A constraint that returns another shape."""
    return np.append(w, 1.0)


def refusing_schedule(step: int) -> float:
    if step > 2:
        raise ArithmeticError("no rate today")
    return 0.125


CONSTRAINTS = [
    None,
    None,
    fv.constraints.NonNeg(),
    fv.constraints.Box(-0.5, 1.0),
    fv.constraints.MaxNorm(1.5, axis=()),
    halved,
]
BAD_CONSTRAINTS = [refusing, flattened]


class Unreadable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no data today")


class World:
    """The variables and the optimizer of a program at present."""

    def __init__(self, rng: Any) -> None:
        self.make, self.options = MAKERS[rng.integers(len(MAKERS))]
        self.options = {**self.options, **OPTIONS[rng.integers(len(OPTIONS))]}
        if self.make is loss_scaled:
            self.options.pop("nonfinite", None)
        if self.make is fv.torch.Rprop:
            self.options.pop("weight_decay", None)
        count = int(rng.integers(1, 6))
        shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
        if rng.random() < 0.1:
            shapes[0] = LARGE
        dtypes = rng.choice(["float32", "float32", "float64"], size=count)
        self.variables = [
            fv.Variable(rng.standard_normal(shape), dtype=dtype, name=f"v{i}")
            for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        self.groups = int(rng.integers(1, 4))
        self.excluded: list[str] = []
        self.optimizer = self.fresh()
        self.optimizer.build(self.grouped())

    def fresh(self) -> fv.Optimizer:
        return self.make(**self.options)

    def grouped(self) -> list[Any]:
        """Return the variables for `build`, in one group or several."""
        parts = [self.variables[k :: self.groups] for k in range(self.groups)]
        return [{"variables": part} for part in parts if part]

    @property
    def order(self) -> list[fv.Variable]:
        """The variables in the order in which the optimizer was built on them."""
        return [v for group in self.optimizer.groups for v in group.variables]


def rows(values: Any, v: fv.Variable, rng: Any) -> Any:
    if not (v.ndim and len(v)):
        return np.asarray(values, v.dtype)
    touched = rng.integers(0, len(v), int(rng.integers(0, 6)))
    return fv.IndexedSlices(rng.standard_normal((len(touched), *v.shape[1:])).astype(v.dtype), touched)


KINDS: list[Callable[[Any, fv.Variable, Any], Any]] = [
    *[lambda values, v, rng: np.asarray(values, v.dtype)] * 3,
    lambda values, v, rng: None,
    lambda values, v, rng: values,  # float64
    lambda values, v, rng: values.astype(np.float16),
    lambda values, v, rng: values.astype(ml_dtypes.bfloat16),
    lambda values, v, rng: values.tolist() if v.size < 100 else values,
    lambda values, v, rng: np.repeat(values.astype(v.dtype), 2, axis=-1)[..., ::2] if v.ndim else values,
    lambda values, v, rng: values.astype(v.dtype.newbyteorder()),
    rows,
]


def gradient(rng: Any, v: fv.Variable) -> Any:
    """Return a gradient of any kind: something that holds real numbers in the variable's shape."""
    values = np.asarray(rng.standard_normal(v.shape) * 10.0 ** rng.choice([0, 0, 0, 0, 0, -3, 2, -42, 25]))
    if rng.random() < 0.03 and v.size:
        values.reshape(-1)[rng.integers(v.size)] = rng.choice([np.nan, np.inf, -np.inf])
    with np.errstate(all="ignore"):
        return KINDS[rng.integers(len(KINDS))](values, v, rng)


def gradients(world: World, rng: Any) -> list[Any]:
    return [gradient(rng, v) for v in world.order]


# Operations. Each changes the world or raises an error.


def apply(world: World, rng: Any) -> None:
    world.optimizer.apply(gradients(world, rng))


def apply_some(world: World, rng: Any) -> None:
    grads = gradients(world, rng)
    chosen = rng.permutation(len(grads))[: int(rng.integers(1, len(grads) + 1))]
    world.optimizer.apply_gradients([(grads[i], world.order[i]) for i in chosen])


def apply_tree(world: World, rng: Any) -> None:
    """Pass variables and gradients as trees with keys in different orders."""
    grads = {v.name: g for v, g in zip(world.order, gradients(world, rng), strict=True)}
    names = [str(name) for name in rng.permutation([*grads])]
    tree = {"model": {v.name: v for v in world.order}}
    world.optimizer.apply({"model": {name: grads[name] for name in names}}, tree)


def step(world: World, rng: Any) -> None:
    for v, g in zip(world.order, gradients(world, rng), strict=True):
        if g is None or rng.random() < 0.8:
            v.grad = g
    world.optimizer.step(zero_grad=bool(rng.random() < 0.5))


def step_again(world: World, rng: Any) -> None:
    world.optimizer.step()


def zero_grad(world: World, rng: Any) -> None:
    world.optimizer.zero_grad(set_to_none=bool(rng.random() < 0.5))


def minimize(world: World, rng: Any) -> None:
    world.optimizer.minimize(lambda: (0.0, [2 * v.value for v in world.order]), world.order)


def freeze(world: World, rng: Any) -> None:
    v = world.variables[rng.integers(len(world.variables))]
    v.trainable = not v.trainable


def set_parameter(world: World, rng: Any) -> None:
    names = [name for name in type(inner(world)).parameters if name != "name"]
    name, value = names[rng.integers(len(names))], VALUES[rng.integers(len(VALUES))]
    group = world.optimizer.groups[rng.integers(len(world.optimizer.groups))]
    setattr(group if rng.random() < 0.3 else inner(world), name, value)


def set_layers(world: World, rng: Any) -> None:
    """Choose other layers for an option that only some rules have."""
    world.optimizer.exclude_layers = [["v0"], [], ["v1", "v2"]][rng.integers(3)]  # type: ignore[attr-defined]


def rename(world: World, rng: Any) -> None:
    """List the variables under other paths. Their own names stay."""
    fv.Checkpoint(model={"layers": world.variables})


def inner(world: World) -> fv.Optimizer:
    return getattr(world.optimizer, "inner_optimizer", world.optimizer)


def set_rate(world: World, rng: Any) -> None:
    name = "lr" if hasattr(world.optimizer, "lr") else "learning_rate"
    setattr(world.optimizer, name, [0.0, 0.125, 0.25, *VALUES[-2:]][rng.integers(5)])


def regularize(world: World, rng: Any) -> None:
    world.variables[rng.integers(len(world.variables))].regularizer = REGULARIZERS[rng.integers(len(REGULARIZERS))]


def constrain(world: World, rng: Any) -> None:
    world.variables[rng.integers(len(world.variables))].constraint = CONSTRAINTS[rng.integers(len(CONSTRAINTS))]


def exclude(world: World, rng: Any) -> None:
    world.excluded = [] if rng.random() < 0.3 else ["v0", "v2"]
    world.optimizer.exclude_from_weight_decay(var_names=world.excluded)


def assign(world: World, rng: Any) -> None:
    v = world.variables[rng.integers(len(world.variables))]
    v.assign(np.asarray(rng.standard_normal(v.shape), v.dtype))


def finalize(world: World, rng: Any) -> None:
    world.optimizer.finalize_variable_values()


# Steps that must fail.


def bad_gradient(world: World, rng: Any) -> None:
    grads: list[Any] = [np.ones(v.shape, v.dtype) for v in world.order]
    i = int(rng.integers(len(grads)))
    v = world.order[i]
    bad = [np.ones((*v.shape, 2)), np.ones(v.shape, complex), np.full(v.shape, "x"), Unreadable(), "text"]
    grads[i] = bad[rng.integers(len(bad))]
    world.optimizer.apply(grads)


def aliased_gradient(world: World, rng: Any) -> None:
    world.optimizer.apply([v.value if v.size else np.ones((9, 9)) for v in world.order])


def too_many(world: World, rng: Any) -> None:
    world.optimizer.apply([np.ones(v.shape, v.dtype) for v in world.order] + [np.ones(3)])


def unknown_variable(world: World, rng: Any) -> None:
    world.optimizer.apply([np.ones(2)], [fv.Variable(np.ones(2), name="v0")])


def bad_constraint(world: World, rng: Any) -> None:
    v = world.variables[rng.integers(len(world.variables))]
    before, v.constraint = v.constraint, BAD_CONSTRAINTS[rng.integers(2)]
    try:
        world.optimizer.apply([np.ones(v.shape, v.dtype) for v in world.order])
    finally:
        v.constraint = before


def bad_schedule(world: World, rng: Any) -> None:
    name = "lr" if hasattr(world.optimizer, "lr") else "learning_rate"
    before = inner(world)._parameters[name]
    setattr(world.optimizer, name, refusing_schedule)
    try:
        world.optimizer.apply([np.ones(v.shape, v.dtype) for v in world.order])
    finally:
        setattr(world.optimizer, name, before)


# Round trips, which do not change the world.


def by_pickle(world: World) -> None:
    replace(world, *pickle.loads(pickle.dumps((world.variables, world.optimizer))))


def by_copy(world: World) -> None:
    replace(world, *copy.deepcopy((world.variables, world.optimizer)))


def by_file(world: World) -> None:
    """Save, and restore into new variables and a new optimizer."""
    variables = [
        fv.Variable(np.zeros(v.shape), v.trainable, v.name, v.dtype, None, v.regularizer, v.constraint)
        for v in world.variables
    ]
    optimizer = world.fresh()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "world.h5"))
        fv.Checkpoint(variables=world.variables, optimizer=world.optimizer).save(path)
        fv.Checkpoint(variables=variables, optimizer=optimizer).restore(path)
    if world.excluded:
        optimizer.exclude_from_weight_decay(var_names=world.excluded)
    replace(world, variables, optimizer)


def replace(world: World, variables: list[fv.Variable], optimizer: fv.Optimizer) -> None:
    for before, after in zip(world.variables, variables, strict=True):
        after.grad = before.grad
    world.variables, world.optimizer = variables, optimizer


STEPS = [apply, apply, apply, apply_some, apply_tree, step, step, step_again, minimize]
OTHERS = [
    zero_grad,
    freeze,
    set_parameter,
    set_parameter,
    set_rate,
    set_layers,
    rename,
    regularize,
    constrain,
    exclude,
    assign,
    finalize,
]
MAY_PASS = [bad_schedule, bad_constraint, bad_gradient, aliased_gradient]  # of what is frozen, or not yet due
FAILURES = [bad_gradient, aliased_gradient, too_many, unknown_variable, bad_constraint, bad_schedule]
TRIPS = [by_pickle, by_copy, by_file]
