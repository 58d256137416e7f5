"""Slots in 8 bits, and the memory of slots of every format."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastvar import buffers
from fastvar.arraylike import Arraylike, unwrap
from fastvar.buffers import Array
from fastvar.formats import GROUP, Codes, groups_of, name_of
from fastvar.kernels.numpy_formats import NEAREST, decode_codes, encode_codes
from fastvar.tables import count
from fastvar.variable import Variable

PIECE = 4096 * GROUP  # elements that are converted at a time


class Quantized(Arraylike):
    """A slot of an optimizer in 8 bits: a code for each element, and a float32 scale for each 256 elements.

    It behaves like a read-only array of its decoded values. `assign` writes, and rounds to the nearest code.

    Attributes
    ----------
    codes : Variable
        uint8, of the shape of the slot.
    scales : Variable
        float32, one for each 256 elements in C order. It is negative if the group has a negative number.

    Notes
    -----
    A code c of a group without negative numbers stands for `(f(c) - 2) * scale`. The float32 number f(c) has the
    bits `0x40000000 + (c << 19)`. So codes are linear near 0, and have four mantissa bits above. In other groups,
    c has seven bits, and the eighth is set for negative numbers. A number that is not finite spoils its group,
    which becomes NaN.

    Examples
    --------
    >>> import fastvar as fv, numpy as np
    >>> w = fv.Variable(np.zeros(5000, np.float32))
    >>> optimizer = fv.optimizers.Adam(slot_dtype="8bit")
    >>> optimizer.apply([np.ones(5000)], [w])
    >>> slot = optimizer.slot(w, "momentum")
    >>> slot.nbytes, round(float(slot[0]), 4), int(slot.codes[0]), len(slot.scales)
    (5080, 0.1, 255, 20)
    """

    def __init__(self, codes: Array, scales: Array, dtype: npt.DTypeLike, name: str | None = None) -> None:
        self.codes: Variable = Variable(codes, False, copy=False)
        self.scales: Variable = Variable(scales, False, copy=False)
        self.name = name
        self._dtype = np.dtype(dtype)

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: npt.DTypeLike, name: str | None = None) -> Self:
        """Return a new slot of zeros, whose decoded values have a dtype."""
        groups = groups_of(int(np.prod(shape, dtype=object)))
        codes, scales = buffers.full(shape, np.uint8, 0), buffers.full((groups,), np.float32, 0)
        return cls(codes, scales, dtype, name)

    @property
    def _array(self) -> Array:  # type: ignore[override]
        array = np.empty(self.size, self._dtype)
        for codes, scales, part in self._pieces(array):
            part[...] = decode_codes(Codes(codes, scales))
        array.flags.writeable = False
        return array.reshape(self.shape)

    def _pieces(self, flat: Array) -> list[tuple[Array, Array, Array]]:
        """Return parts of the codes, of the scales and of a flat array of as many elements."""
        codes, scales = self.codes.value.reshape(-1), self.scales.value
        begins = range(0, codes.size, PIECE)
        return [
            (codes[k : k + PIECE], scales[k // GROUP : (k + PIECE) // GROUP], flat[k : k + PIECE]) for k in begins
        ]

    @property
    def value(self) -> Array:
        """The decoded values: a new read-only array."""
        return self._array

    def numpy(self) -> Array:
        """Return the decoded values as a new array."""
        return self._array.copy()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def size(self) -> int:
        return self.codes.size

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the decoded values."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def trainable(self) -> bool:
        """False, as of every slot."""
        return False

    def assign(self, value: npt.ArrayLike) -> Self:
        """Write values of the same shape, each rounded to the nearest code of its group; return the slot.

        Raises
        ------
        ValueError
            If the shape differs.
        TypeError
            If they are not real numbers.
        """
        array = np.asarray(unwrap(value))
        if array.shape != self.shape:
            raise ValueError(f"slot {self.name!r}: value must have shape {self.shape}, got {array.shape}")
        if not np.can_cast(array.dtype, self._dtype, "same_kind"):
            raise TypeError(f"slot {self.name!r}: value must be real numbers, got {array.dtype}")
        for codes, scales, part in self._pieces(array.reshape(-1)):
            with np.errstate(over="ignore"):
                codes[...], scales[...] = encode_codes(part.astype(np.float32), NEAREST)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        array = self.numpy()
        array[unwrap(key)] = unwrap(value)
        self.assign(array)

    def __repr__(self) -> str:
        return f"<8-bit slot {self.name!r} shape={self.shape} dtype={self.dtype}, {count(self.nbytes, 'byte')}>"


Slot = Variable | Quantized


def format_of(slot: Slot) -> str:
    """Return the format of a slot: "8bit", or the name of its dtype."""
    return "8bit" if isinstance(slot, Quantized) else name_of(slot.dtype)


def parts_of(slot: Slot) -> dict[str, Variable]:
    """Return the variables that hold a slot, by what to append to its name."""
    return {".codes": slot.codes, ".scales": slot.scales} if isinstance(slot, Quantized) else {"": slot}


def arrays_of(slot: Slot) -> list[Array]:
    """Return all memory of a slot."""
    return [part.value for part in parts_of(slot).values()]


def memory_of(slot: Slot) -> Array | Codes:
    """Return the memory of a slot as a plan takes it."""
    return Codes(*arrays_of(slot)) if isinstance(slot, Quantized) else slot.value


def converted(slot: Slot, like: Slot) -> Slot:
    """Return a slot with the values of `slot`, in the format and memory of `like`, rounded to nearest."""
    like[...] = slot.value
    return like
