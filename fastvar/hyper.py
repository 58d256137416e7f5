"""Declared parameters: one line gives the default, range, config, repr and error message of each.

A class lists its parameters as a dataclass lists its fields:

    class Adam(Optimizer):
        beta_1: float = number(default=0.9, low=0, below=1)

It gets a constructor, validation of every assignment, `get_config`, `from_config` and a repr.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, dataclass_transform

import numpy as np

from fastvar.names import ALIASES, OF_TORCH

Real = float | np.floating[Any] | np.integer[Any]
Schedule = Callable[[int], float]
Check = Callable[[Any], Any]
REQUIRED = inspect.Parameter.empty


class Parameter:
    """One declared parameter: a data descriptor that validates on every assignment."""

    def __init__(self, default: Any, check: Check, *, kw_only: bool, per_group: bool, numeric: bool) -> None:
        self.default = default
        self.check = check
        self.kw_only = kw_only
        self.per_group = per_group
        self.numeric = numeric
        self.scheduled: bool = False  # may be a callable of the iteration
        self.name: str = ""

    def __set_name__(self, owner: type[Declared], name: str) -> None:
        self.name = name
        self.scheduled = self.numeric and owner.schedulable

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance._parameters[self.name]
        return instance._evaluate(self, value) if self.scheduled and callable(value) else value

    def __set__(self, instance: Any, value: Any) -> None:
        instance._set(self, self.checked(instance, value))
        instance._given.add(self.name)

    def checked(self, owner: Any, value: Any) -> Any:
        """Return `value` in its canonical type, or raise an error that names owner and parameter."""
        if self.scheduled and callable(value) and not isinstance(value, type):
            return value
        try:
            return self.check(value)
        except (TypeError, ValueError) as error:
            space = "" if str(error).startswith("[") else " "  # `values[2] must be ...`
            raise type(error)(f"{type(owner).__name__}: {self.name}{space}{error}") from None


class Number(Protocol):
    """The annotation of a number of an optimizer: it is read as a float, and set to one or to a schedule."""

    def __get__(self, instance: object, owner: Any = None) -> float: ...
    def __set__(self, instance: Any, value: Real | Schedule) -> None: ...


class OptionalNumber(Protocol):
    """The annotation of a number of an optimizer that may be None."""

    def __get__(self, instance: object, owner: Any = None) -> float | None: ...
    def __set__(self, instance: Any, value: Real | Schedule | None) -> None: ...


def number(
    *,
    default: Any = REQUIRED,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    optional: bool = False,
    exact: bool = False,
    kw_only: bool = False,
    per_group: bool = True,
) -> Any:
    """Declare a finite real number with `low <= x <= high` and `above < x < below`.

    `optional` allows None. With `exact`, a whole number stays an `int`, so that divisions by it are exact.
    """
    bounds = [(low, ">="), (above, ">"), (high, "<="), (below, "<")]
    wanted = " and ".join(f"{sign} {bound:g}" for bound, sign in bounds if math.isfinite(bound))

    def check(value: Any) -> float | None:
        if value is None and optional:
            return None
        if type(value) is not float and not is_real(value):
            raise TypeError(f"must be a real number, got {value!r}")
        result = int(value) if exact and isinstance(value, numbers.Integral) else float(value)
        if not math.isfinite(result):
            raise ValueError(f"must be finite, got {result}")
        if not (low <= result <= high and above < result < below):
            raise ValueError(f"must be {wanted}, got {value!r}")
        return result

    return Parameter(default, check, kw_only=kw_only, per_group=per_group, numeric=True)


def integer(
    *, default: Any = REQUIRED, low: int, optional: bool = False, kw_only: bool = False, per_group: bool = False
) -> Any:
    """Declare a whole number of at least `low` that fits 64 bits; `optional` allows None."""

    def check(value: Any) -> int | None:
        if value is None and optional:
            return None
        if not isinstance(value, numbers.Integral) or value is True or value is False:
            raise TypeError(f"must be a whole number, got {value!r}")
        if value < low:
            raise ValueError(f"must be >= {low}, got {value!r}")
        if int(value) >= 2**64:
            raise ValueError(f"must be < 2**64, got {value!r}")
        return int(value)

    return Parameter(default, check, kw_only=kw_only, per_group=per_group, numeric=False)


def flag(*, default: bool | None, optional: bool = False, kw_only: bool = False, per_group: bool = False) -> Any:
    """Declare True or False; `optional` allows None."""
    wanted = f"True or False{' or None' if optional else ''}"

    def check(value: Any) -> bool | None:
        if not (isinstance(value, bool) or (value is None and optional)):
            raise TypeError(f"must be {wanted}, got {value!r}")
        return value

    return Parameter(default, check, kw_only=kw_only, per_group=per_group, numeric=False)


def text(*, default: str | None, kw_only: bool = False) -> Any:
    """Declare a string or None."""

    def check(value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise TypeError(f"must be a string, got {value!r}")
        return value

    return Parameter(default, check, kw_only=kw_only, per_group=False, numeric=False)


def choice(
    *allowed: str, default: str | None, optional: bool = False, kw_only: bool = False, per_group: bool = False
) -> Any:
    """Declare one of the strings `allowed`; `optional` allows None."""
    wanted = " or ".join(map(repr, allowed))

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, str):
            raise TypeError(f"must be {wanted}, got {value!r}")
        if value not in allowed:
            raise ValueError(f"must be {wanted}, got {value!r}")
        return value

    return Parameter(default, check, kw_only=kw_only, per_group=per_group, numeric=False)


def schedule(*, low: float = 0) -> Any:
    """Declare a number of at least `low`, or a callable of the iteration that returns one."""
    of_number = number(low=low).check

    def check(value: Any) -> Any:
        if isinstance(value, type):
            raise TypeError(f"must be a number or a schedule, got the class {value.__name__}")
        return value if callable(value) else of_number(value)

    return Parameter(REQUIRED, check, kw_only=False, per_group=False, numeric=False)


def nested(of: type) -> Any:
    """Declare an instance of `of`, a class with declared parameters."""

    def check(value: Any) -> Any:
        if not isinstance(value, of):
            raise TypeError(f"must be of class {of.__name__}, got {value!r}")
        return value

    return Parameter(REQUIRED, check, kw_only=False, per_group=False, numeric=False)


def sequence(of: Any, *, default: Any = REQUIRED, kw_only: bool = False) -> Any:
    """Declare a list whose elements `of` declares, as in `sequence(number(low=0))`. It is kept as a tuple.

    None means the default, if there is one.
    """

    def check(values: Any) -> tuple[Any, ...]:
        if values is None and default is not REQUIRED:
            values = default
        return tuple(_checked_element(i, of, value) for i, value in enumerate(_as_list(values)))

    return Parameter(default, check, kw_only=kw_only, per_group=False, numeric=False)


def _as_list(values: Any) -> list[Any]:
    if isinstance(values, (str, dict)) or not hasattr(values, "__iter__"):
        raise TypeError(f"must be a list, got {values!r}")
    return list(values)


def _checked_element(i: int, of: Any, value: Any) -> Any:
    try:
        return of.check(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"[{i}] {error}") from None


def pair(first: Any, second: Any, *, default: tuple[float | None, float]) -> Any:
    """Declare two numbers, each with its own declaration: `pair(number(low=0), number(above=1), ...)`."""

    def check(values: Any) -> tuple[Any, ...]:
        given = _as_list(values)
        if len(given) != 2:
            raise ValueError(f"must be two numbers, got {values!r}")
        return _checked_element(0, first, given[0]), _checked_element(1, second, given[1])

    return Parameter(default, check, kw_only=False, per_group=True, numeric=False)


def axes(*, default: int) -> Any:
    """Declare an axis or a list of axes."""

    def check(value: Any) -> int | tuple[int, ...]:
        if isinstance(value, numbers.Integral) and value is not True and value is not False:
            return int(value)
        try:
            return tuple(int(axis) for axis in value)
        except (TypeError, ValueError):
            raise TypeError(f"must be an axis or a list of axes, got {value!r}") from None

    return Parameter(default, check, kw_only=False, per_group=False, numeric=False)


def is_real(value: Any) -> bool:
    """Return whether `value` is one real number of Python or NumPy; a bool is not."""
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool)
    return getattr(value, "shape", None) == () and value.dtype.kind in "fiu"


def declares_attribute(cls: type, name: str) -> bool:
    """Return whether the body of a class, or of a base, gives this attribute a value or a type."""
    if getattr(cls, name, None) is not None:
        return True
    return any(name in inspect.get_annotations(base) for base in cls.__mro__)


def suggestion(name: str, known: dict[str, str]) -> str:
    """Return the end of a message about an unknown name: ", did you mean ...?", or nothing."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {known[close[0]]!r}?" if close else ""


def _registered_name(cls: type[Declared]) -> str:
    """Return the name under which a class is stored. The module in it keeps users' classes apart from ours."""
    if cls.__module__.startswith("fastvar."):
        return f"{cls.namespace}{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def constant(value: Any, *, init: Literal[False]) -> Any:
    """Declare an attribute that is not an argument, except in subclasses that declare a parameter of its name."""
    return value


@dataclass_transform(
    field_specifiers=(number, integer, flag, text, choice, schedule, nested, sequence, pair, axes, constant)
)
class Declared:
    """Base of classes with declared parameters."""

    parameters: ClassVar[dict[str, Parameter]] = {}
    registry: ClassVar[dict[str, type[Declared]]] = {}
    schedulable: ClassVar[bool] = False
    """Whether a callable of the iteration may stand for any number declared."""
    namespace: ClassVar[str] = ""
    """Prefix of stored class names: fastvar.torch has classes with the same names and other meanings."""
    __signature__: ClassVar[inspect.Signature]
    stateful: ClassVar[Collection[str]] = ()
    """Names of parameters that hold state, not choices of the program; `a.b` is the parameter b of a."""
    _signature: ClassVar[inspect.Signature]
    _defaults: ClassVar[dict[str, Any]]
    _positional: ClassVar[list[str]]
    _required: ClassVar[set[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Parameter)}
        inherited = {name: p for name, p in cls.parameters.items() if name not in vars(cls)}
        cls.parameters = {**inherited, **own}  # `name = None` in a class drops an inherited parameter
        cls.registry[_registered_name(cls)] = cls
        if "__init__" in vars(cls) and not cls.__module__.startswith("fastvar."):
            raise TypeError(
                f"{cls.__name__}: declare parameters in the class body instead of writing __init__: "
                "`rate: float = number(default=0.1, low=0)` (fastvar.hyper)"
            )
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        ordered = sorted(cls.parameters.items(), key=lambda item: item[1].kw_only)
        signature = [inspect.Parameter(name, kinds[p.kw_only], default=p.default) for name, p in ordered]
        cls._signature = inspect.Signature(signature)
        cls._defaults = {name: p.default for name, p in ordered}
        cls._positional = [name for name, p in ordered if not p.kw_only]
        cls._required = {name for name, p in ordered if p.default is REQUIRED}
        cls.__signature__ = cls._signature

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        for name in kwargs:
            if name not in cls.parameters:
                raise TypeError(f"{cls.__name__}: unknown argument {name!r}{cls._suggestion(name)}")
        given = {**dict(zip(cls._positional, args, strict=False)), **kwargs}
        if len(given) < len(args) + len(kwargs) or cls._required - given.keys():
            try:
                cls._signature.bind(*args, **kwargs)  # which takes long, and says what is wrong
            except TypeError as error:
                raise TypeError(f"{cls.__name__}: {error}") from None
        self._given = {*given}  # names of the parameters that the program has set
        self._parameters: dict[str, Any] = {}
        for name, value in {**cls._defaults, **given}.items():
            parameter = cls.parameters[name]
            self._parameters[name] = parameter.checked(self, value)
        self._validate()

    if not TYPE_CHECKING:  # with a __setattr__, type checkers allow every name

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name.startswith("_") or name in self.parameters or self._has_attribute(name)):
                raise AttributeError(f"{type(self).__name__}: no attribute {name!r}{self._suggestion(name)}")
            super().__setattr__(name, value)

    @classmethod
    def _has_attribute(cls, name: str) -> bool:
        if hasattr(type(getattr(cls, name, None)), "__set__"):
            return True
        dropped = any(name in base.parameters for base in cls.__mro__ if issubclass(base, Declared))
        return not dropped and declares_attribute(cls, name)

    @classmethod
    def _suggestion(cls, name: str) -> str:
        if name in OF_TORCH and not cls.namespace:
            return "; the optimizers with PyTorch's arguments are in fastvar.torch"
        if name == "decay":
            return "; it was Keras 2's: pass a schedule as learning_rate, such as fv.schedules.InverseTimeDecay"
        return suggestion(name, {parameter: parameter for parameter in cls.parameters} | cls._known_aliases())

    @classmethod
    def _known_aliases(cls) -> dict[str, str]:
        """Return a mapping from names in other libraries to our names of the same parameters."""
        ours = {theirs: name for theirs, name in ALIASES.items() if hasattr(cls, name)}
        back = {name: theirs for theirs, name in ALIASES.items() if theirs in cls.parameters}
        return {name: here for name, here in (ours | back).items() if name not in cls.parameters}

    def _validate(self) -> None:
        """Check conditions on several parameters. Runs on every change, before it takes effect."""

    def _set(self, parameter: Parameter, value: Any) -> None:
        before = self._parameters[parameter.name]
        self._parameters[parameter.name] = value
        try:
            self._validate()
        except BaseException:
            self._parameters[parameter.name] = before
            raise

    def _evaluate(self, parameter: Parameter, value: Callable[[int], float]) -> float:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the parameters as plain values, nested declared objects as `{"class_name", "config"}`.

        A schedule that is a plain function is returned as it is.
        """
        return {name: serialize(value) for name, value in self._parameters.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make an object from the result of `get_config`."""
        return cls(**{name: deserialize(value) for name, value in config.items()})

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name, value in self._parameters.items()
            if not self.parameters[name].kw_only or value != self.parameters[name].default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


class Fixed(Declared):
    """Base of declared classes whose objects are immutable, so that plans made with them stay valid."""

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_"):
                kind = type(self).__name__
                raise AttributeError(f"{kind}: {name} is fixed; assign a new {kind} to the variable instead")
            super().__setattr__(name, value)


def serialize(value: Any) -> Any:
    """Return a declared object as `{"class_name", "config"}`, tuples and arrays as lists, the rest unchanged."""
    if isinstance(value, Declared):
        return {"class_name": _registered_name(type(value)), "config": value.get_config()}
    if isinstance(value, tuple):
        return [serialize(element) for element in value]
    return value.tolist() if hasattr(value, "tolist") else value


def deserialize(value: Any) -> Any:
    """Reverse `serialize`.

    Raises
    ------
    ValueError
        If the class is not known in this process.
    """
    if isinstance(value, dict) and value.keys() == {"class_name", "config"}:
        if value["class_name"] not in Declared.registry:
            raise ValueError(f"unknown class {value['class_name']!r}; import the module that defines it first")
        return Declared.registry[value["class_name"]].from_config(value["config"])
    return [deserialize(element) for element in value] if isinstance(value, list) else value
