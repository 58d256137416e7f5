"""The API of optimizers: build, apply, step, minimize."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, ClassVar, NoReturn, TypeVar, overload

from fastvar.gradients import ONLY_LOSS, Library, differentiated, loss_and_gradients
from fastvar.hyper import Parameter
from fastvar.kernels.atomic import Atomic
from fastvar.kernels.turn import Turn
from fastvar.module import Tree, as_tree, holds_variables, is_sequence
from fastvar.optimizer.groups import Group
from fastvar.optimizer.kept import Kept
from fastvar.optimizer.options import evaluated
from fastvar.optimizer.planning import StepPlan
from fastvar.optimizer.quantized import arrays_of
from fastvar.optimizer.slots import begin_anew, first_numbers, first_values, keep
from fastvar.optimizer.step import step
from fastvar.optimizer.trees import arranged, check_variables, parsed, variables_of
from fastvar.place import Place, Structure
from fastvar.variable import Variable

L = TypeVar("L")


class Optimizer(Kept):
    """Base of all optimizers: update variables in place from gradients, in one pass over memory.

    All optimizers have the options below. The order of a step is Keras's: gradients that are None are dropped; the
    others are unscaled, accumulated, regularised and clipped; weights decay; the rule updates them; moving
    averages are updated; constraints are applied; `iterations` increases. Everything is checked before the first
    element is written: a step updates all variables, or it raises an error and changes nothing.

    Parameters
    ----------
    learning_rate : float or callable
        Step size, >= 0; or a schedule, a function of the iteration (from 0).
    weight_decay : float, optional
        Decoupled decay: `w -= learning_rate * weight_decay * w` before the update, >= 0.
    clipnorm : float, optional
        Scale the gradient of each variable to at most this L2 norm, > 0.
    clipvalue : float, optional
        Clip each element of the gradients to [-clipvalue, clipvalue], > 0.
    global_clipnorm : float, optional
        Scale all gradients together to at most this L2 norm, > 0.
    adaptive_clipnorm : float, optional
        Adaptive gradient clipping: scale the gradient of each unit to at most this times the norm of the unit's
        weights, > 0. A unit is what one output depends on: a column of a kernel, or a whole vector. Only one of
        these four options can be set.
    use_ema : bool
        Keep an exponential moving average of every variable: `a = m * a + (1 - m) * w`. It starts as a copy of
        the weights at the first step after it is switched on.
    ema_momentum : float
        The `m` in this formula, in [0, 1].
    ema_overwrite_frequency : int, optional
        Every this many iterations, overwrite the variables with their averages, >= 1.
    loss_scale_factor : float, optional
        Divide gradients by this, > 0; `scale_loss` multiplies the loss by it.
    gradient_accumulation_steps : int, optional
        Update once in this many calls, >= 2, with the sum of their gradients divided by this number. None does not
        count in the sum. A variable with None in all calls is not updated.
    nonfinite : {"ignore", "skip", "raise"}
        What a step does if a gradient holds infinity or NaN, or if a finite weight, slot or average would become
        infinite or NaN: "ignore" updates anyway, "skip" changes nothing and counts the step in `skipped`, "raise"
        changes nothing and raises ValueError. The last two keep a copy of what a step writes. Then Adam takes 1.6
        times as long for large models, and up to 2.5 times for those that just fit the processor's cache.
    slot_dtype : {None, "bfloat16", "8bit"}
        How slots are stored: in the dtype of their variable, or in 2 bytes or about 1 byte an element. They are
        rounded stochastically. Slots that are weights rather than statistics, moving averages, accumulators and
        factored statistics keep the dtype of the variable. See docs/formats.md.
    slot_dtype_min_size : int
        Slots of variables with fewer elements, by default 4096, keep the dtype of the variable.
    master : bool
        Variables of 16 bits are computed in float32. True: they keep what 16 bits leave out, in another 2
        (bfloat16) or 4 bytes (float16) an element, and train like float32. False: bfloat16 is rounded
        stochastically; float16 is an error. A variable that has a master keeps it. See docs/formats.md.
    seed : int
        Seed of the stochastic rounding, from 0 to 2^64 - 1. The same seed gives the same bits on every processor
        and any number of threads.
    name : str, optional
        The beginning of error messages; by default the name of the class.

    Notes
    -----
    With accumulation, as in Keras: schedules count calls, and take effect at those that update. Moving averages
    are updated at every call; during the first window they equal the weights. `ema_overwrite_frequency`,
    `iterations` and the rules count updates. Constraints are applied after every call. A call that
    `nonfinite="skip"` skips does not count at all.

    Hyperparameters can be set at any time. The next step is that of a new optimizer that has them and this one's
    state: slots that are no longer needed are dropped, and newly needed ones start at their initial values.
    Patterns for names match the names that variables had at `build`.

    For a rule of your own, write a subclass that declares its parameters, names its slots, and defines `update` in
    plain NumPy. All options above work with it. Declare other attributes in the class body (`calls: int = 0`), or
    begin their names with `_`. Setting an undeclared attribute is an error, so that a misspelt setting is noticed.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> from fastvar.hyper import number
    >>> class Heavy(fv.Optimizer):
    ...     learning_rate: float = number(default=0.1, low=0)
    ...     friction: float = number(default=0.5, low=0, high=1)
    ...     slots = ("velocity",)
    ...     def update(self, variable, gradient, slots, hyper):
    ...         slots.velocity *= hyper.friction
    ...         slots.velocity -= hyper.learning_rate * gradient
    ...         variable += slots.velocity
    >>> w = fv.Variable([1.0, 2.0])
    >>> optimizer = Heavy(clipvalue=1.0)
    >>> optimizer.apply([[3.0, 0.5]], [w])
    >>> w.value
    array([0.9 , 1.95])
    """

    group_keys: ClassVar[tuple[str, ...]] = ("variables",)  # the keys for the variables of a group

    # Construction.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args and holds_variables(args[0]):
            raise TypeError(
                f"{type(self).__name__}: takes no variables here; pass them to build, apply or minimize "
                "(the optimizers of fastvar.torch take them first, as in PyTorch)"
            )
        super().__init__(*args, **kwargs)
        self._tree: Tree | None = None  # of the variables given to `build`
        self._sequence_length = -1  # a list of this length has the gradients in the order of the variables
        self._excluded: tuple[list[Variable], re.Pattern[str] | None] = ([], None)
        self._plan: StepPlan | None = None
        self._turn = Turn(type(self).__name__)

    def _set(self, parameter: Parameter, value: Any) -> None:
        name = parameter.name
        if name == "gradient_accumulation_steps" and self._steps and value != self._parameters[name]:
            raise ValueError(f"{self._owner}: {name} is fixed once training has begun: it counts in calls")
        self._change(self._parameters, name, value)

    def _change(self, values: dict[str, Any], name: str, value: Any) -> None:
        state, firsts = self._state, first_values(self, self._state)
        slots = [array for slot, i in firsts if i >= 0 for array in arrays_of(state.slots[slot][i])]
        before = [*self._kept(), (values, values.copy()), *((slot, slot.copy()) for slot in slots)]
        with Atomic(before, []):
            values[name] = value
            if self._plan:
                self._plan.stale = True
            self._validate()
            if state.variables:
                if keep(self, state):
                    self._plan = None
                begin_anew(self, state, firsts)

    def _evaluate(self, parameter: Parameter, schedule: Callable[[int], float]) -> float:
        return evaluated(self._owner, parameter, schedule, self._steps)

    def build(self, variables: Any) -> None:
        """Set the variables to update, and make their slots. Later calls with the same variables do nothing.

        Parameters
        ----------
        variables : tree or iterable of Variable or dict
            Modules, dicts, lists, tuples, named tuples and dataclasses of variables, nested in any way. None means
            no variable. Dicts at the top level with the key "variables" are groups:
            `{"variables": tree, "learning_rate": 1e-4, ...}`. The variables outside groups form another group,
            with the optimizer's own hyperparameters. A variable without a name is named by its path.

        Raises
        ------
        TypeError
            If something is not a variable, or not float32, float64, bfloat16 or float16.
        ValueError
            If there are no variables, a group is empty, a variable or a name occurs twice, variables share memory,
            or the optimizer is built on other variables.
        """
        tree, grouped = parsed(self._owner, variables, self.group_keys)
        flat, built = [v for group in grouped for v in group["variables"]], self._state.variables
        if built and [*map(id, flat)] != [*map(id, built)]:
            raise ValueError(f"{self._owner}: is built on other variables; make a new optimizer for these")
        with Atomic(self._kept(), []):
            if not built:
                self._build(grouped)
            if all(map(is_, tree.variables, flat)):
                tree.variables = self._state.variables
            self._tree, self._sequence_length = (
                tree,
                tree.sequence_length if tree.variables is self._state.variables else -1,
            )

    def _build(self, grouped: list[dict[str, Any]]) -> None:
        check_variables(self._owner, grouped, self.master)
        state = self._state  # a restore has made its slots
        state.take([Group(self, group.pop("variables"), group) for group in grouped])
        state.numbers = {**state.numbers, **first_numbers(self, len(state.variables))}
        self._refreshed()

    def _kept(self) -> list[tuple[Any, Any]]:
        """Return all but the slots as pairs of target and value, with which `Atomic` restores them."""
        mine = {name: getattr(self, name) for name in ("_tree", "_sequence_length", "_plan")}
        return [(self, mine), (self._parameters, self._parameters.copy()), *self._state.kept()]

    def _forget_plan(self) -> None:
        """Plan again at the next step."""
        self._updating._plan = None

    def _refreshed(self) -> StepPlan:
        """Return a plan with the present hyperparameters. Make a new one only if necessary."""
        if keep(self, self._state):
            self._plan = None
        plan = self._plan
        if plan is None or plan.version is not Structure.version:
            plan = self._plan = StepPlan(self, self._state)
        elif plan.stale:
            plan.read_hyperparameters()
        return plan

    # Stepping.

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the variables once from `grads`.

        Parameters
        ----------
        grads : tree or sequence of array_like, IndexedSlices or None
            A tree like that of the variables. Each variable gets the gradient at its path, such as "dense/kernel",
            in any order and in any container (such as a dict for a module). None means no gradient, also for a
            whole branch. A dict may have full paths or names as keys. A flat sequence is in the order of the
            variables; it is refused if they are in a dict, whose order is not certain. `IndexedSlices` update the
            rows that they name. Gradients that are lists, strided, byte-swapped, misaligned or of another real
            dtype are converted.
        trainable_variables : tree or iterable of Variable, optional
            The variables of `grads`, by default those of `build`. The first call builds the optimizer on them.
            Variables whose `trainable` is False keep their values.

        Raises
        ------
        TypeError, ValueError
            For a bad gradient; the message names the variable. Nothing has changed.
        RuntimeError
            If another thread is in a step of this optimizer.
        """
        self._apply(grads, trainable_variables, False)

    def _apply(self, grads: Any, variables: Any, zero: bool) -> None:
        with self._turn:
            if variables is not None and not self._state.variables:
                with Atomic(self._kept(), [], self._state.count):  # if this fails, it is still not built
                    grads = self._arranged(grads, variables)
                    if self._state.variables:
                        step(self._refreshed(), grads, zero)
                return
            if variables is not None or type(grads) is not list or len(grads) != self._sequence_length:
                grads = self._arranged(grads, variables)
                if not self._state.variables:
                    return
            plan = self._plan
            if plan is None or plan.stale or plan.version is not Structure.version:
                plan = self._refreshed()
            step(plan, grads, zero)

    def _arranged(self, grads: Any, variables: Any) -> list[Any]:
        """Return the gradients in the order of the variables. Build the optimizer first if necessary."""
        owner, state = self._owner, self._state
        if variables is state.variables:
            return grads  # type: ignore[no-any-return]
        if variables is not None and self._tree is None:
            variables = as_tree(variables, f"{owner}: variables")
            if not is_sequence(variables) or variables:
                self.build(variables)
            variables = None
        return arranged(owner, self._tree, state, self.group_keys, grads, variables)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> int:
        """Update once from pairs of gradient and variable, or of trees of these. Return the number of calls."""
        pairs = list(grads_and_vars)
        self.apply([gradient for gradient, _ in pairs], [v for _, v in pairs])
        return self._steps

    def step(self, zero_grad: bool = False) -> None:
        """Update once from the `grad` of every variable. With `zero_grad`, zero them in the same pass.

        Raises
        ------
        ValueError
            If no variable has a `grad`, or with `zero_grad` one cannot be zeroed in place.
        """
        if not self._state.variables:
            raise ValueError(f"{self._owner}: call build(variables) first")
        self._apply([v.grad for v in self._state.variables], self._state.variables, zero_grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the `grad` of every variable, or with `set_to_none=False` fill them with zeros.

        A `grad` that cannot be written in place (a list, a read-only array, a JAX array) is replaced by zeros. A
        sparse one (`IndexedSlices`) becomes None, which means zero.
        """
        if set_to_none:
            after = [(v, {"_grad": None}) for v in self._state.variables]
        else:
            after = [v._zeroing(v.grad) for v in self._state.variables]
        with Atomic([], after):
            pass

    @overload
    def minimize(
        self, value_and_grad: Callable[[], tuple[L, Any]], var_list: Any = None, gradients: None = None
    ) -> L: ...
    @overload
    def minimize(
        self, value_and_grad: Callable[[Any], Any], var_list: Any = None, *, gradients: Library
    ) -> Any: ...
    def minimize(
        self, value_and_grad: Callable[..., Any], var_list: Any = None, gradients: Library | None = None
    ) -> Any:
        """Call `value_and_grad()` for the loss and the gradients of `var_list`, update once, return the loss.

        The gradients and `var_list` are trees or sequences, as in `apply`. With `gradients="autograd"`, "jax" or
        "torch", the first argument is instead a function that returns only the loss, a scalar. It is called with a
        tree of arrays like `var_list`, and that library differentiates it; see docs/gradients.md.

        Examples
        --------
        >>> import fastvar as fv
        >>> w = fv.Variable([4.0])
        >>> optimizer = fv.optimizers.SGD(0.25)
        >>> for _ in range(3):
        ...     loss = optimizer.minimize(lambda: ((w**2).sum(), [2 * w.value]), [w])
        >>> w.value
        array([0.5])
        """
        if gradients is not None:
            var_list = (
                self._state.variables if var_list is None else as_tree(var_list, f"{self._owner}: variables")
            )
            value_and_grad = differentiated(self._owner, value_and_grad, var_list, gradients)
        loss, grads = loss_and_gradients(self._owner, value_and_grad, ONLY_LOSS)
        self.apply(grads, var_list)
        return loss

    def scale_loss(self, loss: Any) -> Any:
        """Return `loss` times `loss_scale_factor`, for differentiation."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    # Options of single variables.

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Iterable[str] | None = None) -> None:
        """Exclude variables from `weight_decay`: those in `var_list`, and those whose names match.

        Parameters
        ----------
        var_list : tree or iterable of Variable, optional
            The variables themselves.
        var_names : iterable of str, optional
            Regular expressions to search for anywhere in a name, as in Keras.

        Examples
        --------
        >>> import fastvar as fv
        >>> optimizer = fv.optimizers.AdamW()
        >>> optimizer.exclude_from_weight_decay(var_names=["bias", "norm"])
        """
        if isinstance(var_names, str):
            raise TypeError(f"{self._owner}: var_names must be a list of strings, got {var_names!r}")
        pattern = re.compile("|".join(var_names)) if var_names else None
        self._excluded = ([] if var_list is None else variables_of(self._owner, var_list), pattern)
        self._forget_plan()

    def decays(self, variable: Place) -> bool:
        """Return whether `weight_decay` applies to the variable."""
        listed, pattern = self._excluded
        return not any(v is variable for v in listed) and not (pattern and pattern.search(self._name_of(variable)))

    def _name_of(self, variable: Place) -> str:
        """Return the name of a variable, for those of `build` the name at that time."""
        i = self._state.index.get(id(variable))
        return variable.name or "" if i is None else self._state.names[i]

    # Copies.

    @property
    def _turns(self) -> list[Turn]:
        """The locks that a save or restore takes, so that no other thread steps meanwhile."""
        return [self._turn]

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{self._owner}: use copy.deepcopy((variables, optimizer)), which keeps them together")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plan": None, "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = Turn(type(self).__name__)
