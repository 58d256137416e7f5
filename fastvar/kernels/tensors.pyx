"""The memory of PyTorch's tensors, read at every step without making an object for any.

It is read through DLPack's C exchange API where torch.Tensor has it, otherwise through the methods of tensors.
Gradients and signs, which DLPack lacks, are read by the C functions behind `grad` and `is_neg`.
"""

from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

cimport cython
cimport numpy as cnp

from types import GetSetDescriptorType, MethodDescriptorType

import numpy as np

from fastvar import buffers
from fastvar import formats as _declared

cnp.import_array()

cdef extern from "Python.h":
    ctypedef object (*getter)(PyObject*, void*)
    ctypedef object (*PyCFunction)(PyObject*, PyObject*)
    ctypedef struct PyGetSetDef:
        getter get
        void* closure
    ctypedef struct PyGetSetDescrObject:
        PyGetSetDef* d_getset
    ctypedef struct PyMethodDef:
        PyCFunction ml_meth
        int ml_flags
    ctypedef struct PyMethodDescrObject:
        PyMethodDef* d_method
    int METH_NOARGS
    void PyErr_Clear()
    int PyDict_Next(object, Py_ssize_t*, PyObject**, PyObject**)

cdef extern from "prefetch.h":
    void prefetch_read(const void*) nogil

include "dlpack.pxi"

cdef enum:
    AHEAD = 6  # how many parameters ahead to prefetch

cdef struct TensorInfo:  # what was read of a tensor, until other code runs
    uintptr_t address
    Py_ssize_t size  # elements
    int format  # in formats.FORMATS, BYTES or WORDS; -1: none of them
    int ndim
    const int64_t* shape
    const int64_t* strides
    int64_t axes[2 * MAX_AXES]  # shape and strides, if the tensor has no array of them

cdef struct Location:  # where a tensor was when the plan was made
    uintptr_t address
    Py_ssize_t size
    int format
    const void* inside  # of the tensor itself, to prefetch it

cdef struct Memory:  # buffers.MEMORY
    uintptr_t address
    Py_ssize_t size
    int format
    int writable

if sizeof(Memory) != buffers.MEMORY.itemsize:
    raise ImportError("fastvar: the compiled kernels do not match buffers.MEMORY; build them again")


@cython.final
cdef class Reader:
    """Reads tensors of exactly the classes that it is given, the first of which is torch.Tensor.

    `layout` is the one of dense tensors; `exchange` whether DLPack's exchange API may be used.
    """

    cdef tuple classes
    cdef object layout
    cdef object of_gradient, of_sign  # the descriptors of these two, which keep them alive
    cdef PyGetSetDef* gradient
    cdef PyCFunction is_negative
    cdef const ExchangeAPI* api

    def __init__(self, tuple classes not None, layout, bint exchange=True):
        self.classes, self.layout = classes, layout
        self.of_gradient, self.of_sign = classes[0].grad, classes[0].is_neg
        if type(self.of_gradient) is not GetSetDescriptorType or type(self.of_sign) is not MethodDescriptorType:
            raise TypeError("Reader: grad and is_neg must be built into the class of tensors")
        method = (<PyMethodDescrObject*> <PyObject*> self.of_sign).d_method
        if method.ml_flags != METH_NOARGS:
            raise TypeError("Reader: is_neg must take no arguments")
        self.gradient = (<PyGetSetDescrObject*> <PyObject*> self.of_gradient).d_getset
        self.is_negative = method.ml_meth
        capsule = getattr(classes[0], "__dlpack_c_exchange_api__", None)
        if exchange and capsule is not None:
            self.api = <const ExchangeAPI*> PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
            if self.api.header.version.major != MAJOR or self.api.read == NULL:
                self.api = NULL

    @property
    def exchanges(self):
        """Whether it reads through DLPack."""
        return self.api != NULL

    def memory(self, tensor, like=None):
        """Return the record of `buffers.MEMORY` of a tensor; None if kernels cannot use it as it is.

        They use numbers in a storage format that lie densely in the memory of the CPU, in any order of the axes;
        with `like`, in that of this tensor.
        """
        cdef TensorInfo seen, other
        if not self.read(tensor, &seen) or not dense(&seen):
            return None
        if like is not None and not (self.read(like, &other) and alike(&seen, &other)):
            return None
        return seen.address, seen.size, seen.format, 1

    def arrays(self, list tensors not None):
        """Return for each tensor an array with its memory, in any layout; None for what cannot be read.

        bfloat16 cannot be read: NumPy lacks it.
        """
        return [self.array_of(tensor) for tensor in tensors]

    def records(self, list tensors not None, list like not None):
        """Return the `buffers.MEMORY` of tensors; None unless each is another one that lies as its `like`."""
        cdef TensorInfo seen, other
        cdef Py_ssize_t i, n = len(like)
        cdef Memory* m
        if len(tensors) != n:
            return None
        memory = np.empty(n, buffers.MEMORY)
        m = <Memory*> cnp.PyArray_DATA(memory)
        for i in range(n):
            if not self.read(tensors[i], &seen) or tensors[i] is like[i] or not self.read_known(like[i], &other):
                return None
            if not (alike(&seen, &other) and dense(&other) and aligned(&seen)):
                return None
            m[i] = Memory(seen.address, seen.size, seen.format, 1)
        return memory

    cdef object array_of(self, object tensor):
        cdef TensorInfo seen
        cdef cnp.npy_intp strides[MAX_AXES]
        cdef int axis, kind, width
        if not self.read(tensor, &seen) or seen.format == BF16:
            return None
        kind, width = cnp.NPY_FLOAT16, 2
        if seen.format != F16:
            kind, width = (cnp.NPY_FLOAT32, 4) if seen.format == F32 else (cnp.NPY_FLOAT64, 8)
        for axis in range(seen.ndim):
            strides[axis] = seen.strides[axis] * width
        array = cnp.PyArray_New(
            np.ndarray, seen.ndim, <cnp.npy_intp*> seen.shape, kind, strides, <void*> seen.address, 0,
            cnp.NPY_ARRAY_WRITEABLE, None)
        cnp.set_array_base(array, tensor)
        return array

    cdef bint read(self, object tensor, TensorInfo* seen) except -1:
        # Whether it could be read: numbers as they are, in a storage format, in the memory of the CPU.
        return self.plain(tensor) and self.read_known(tensor, seen) and are_numbers(seen.format)

    cdef bint plain(self, object tensor) except -1:
        # Whether it is of one of the classes, and no negative view. This lets other threads run.
        return type(tensor) in self.classes and self.is_negative(<PyObject*> tensor, NULL) is False

    cdef object gradient_of(self, object tensor):
        # The `grad` of a tensor of one of the classes.
        return self.gradient.get(<PyObject*> tensor, self.gradient.closure)

    cdef bint read_known(self, object tensor, TensorInfo* seen) except -1:
        # The same of a tensor of the right class that is known not to be a negative view.
        cdef DLTensor x
        cdef int axis
        if self.api == NULL:
            return self.read_by_methods(tensor, seen)
        if self.api.read(<void*> tensor, &x) != 0:
            PyErr_Clear()  # it is no such tensor
            return False
        if x.device.kind != CPU or x.dtype.lanes != 1 or not 0 <= x.ndim <= MAX_AXES:
            return False
        seen.format = format_of(x.dtype.code, x.dtype.bits)
        seen.address, seen.ndim, seen.size = <uintptr_t> x.data + x.byte_offset, x.ndim, 1
        seen.shape, seen.strides = x.shape, x.strides
        for axis in range(x.ndim):
            seen.size *= x.shape[axis]
        return seen.format >= 0 and (seen.address != 0 or seen.size == 0)

    cdef bint read_by_methods(self, object tensor, TensorInfo* seen) except -1:
        cdef int axis
        cdef str name = str(tensor.dtype).removeprefix("torch.")
        if tensor.device.type != "cpu" or tensor.layout is not self.layout or name not in LOCATED:
            return False
        shape, strides = tensor.shape, tensor.stride()
        seen.format = LOCATED.index(name)
        seen.ndim, seen.size = len(shape), tensor.numel()
        seen.address = tensor.data_ptr()
        seen.shape, seen.strides = seen.axes, seen.axes + MAX_AXES
        for axis in range(seen.ndim):
            seen.axes[axis], seen.axes[MAX_AXES + axis] = shape[axis], strides[axis]
        return seen.address != 0 or seen.size == 0


cdef bint dense(const TensorInfo* seen) noexcept:
    # Whether the elements lie side by side, in any order of the axes.
    cdef int64_t stride = 1
    cdef int axis, found = -1
    while stride < seen.size and found != 0:
        found = 0
        for axis in range(seen.ndim):
            if seen.shape[axis] > 1 and seen.strides[axis] == stride:
                stride *= seen.shape[axis]
                found = 1
                break
    return stride == seen.size or seen.size == 0


cdef bint alike(const TensorInfo* x, const TensorInfo* y) noexcept:
    # Whether the same elements lie at the same places.
    cdef int axis
    if x.ndim != y.ndim:
        return False
    for axis in range(x.ndim):
        if x.shape[axis] != y.shape[axis] or (
                x.shape[axis] > 1 and x.size and x.strides[axis] != y.strides[axis]):
            return False
    return True


cdef int locate(Reader reader, object tensor, Location* at) except -1:
    cdef TensorInfo seen
    if not (reader.plain(tensor) and reader.read_known(tensor, &seen)):
        raise ValueError("must be given tensors that can be read")
    at[0] = Location(seen.address, seen.size, seen.format, NULL)
    if reader.api != NULL:
        at.inside = seen.shape
    return 0


@cython.final
cdef class Places:
    """Where tensors are, to see later whether they are still there."""

    cdef Reader reader
    cdef list tensors
    cdef Location* kept

    def __cinit__(self, Reader reader not None, list tensors not None):
        cdef Py_ssize_t i
        self.reader, self.tensors = reader, [*tensors]
        self.kept = <Location*> calloc(max(len(self.tensors), 1), sizeof(Location))
        if self.kept == NULL:
            raise MemoryError
        for i in range(len(self.tensors)):
            locate(reader, self.tensors[i], self.kept + i)

    def __dealloc__(self):
        free(self.kept)

    def hold(self, list tensors not None):
        """Return whether these are the same objects, with their memory where it was."""
        cdef TensorInfo seen
        cdef Py_ssize_t i
        if len(tensors) != len(self.tensors):
            return False
        for i in range(len(self.tensors)):
            if tensors[i] is not self.tensors[i]:
                return False
            if not self.reader.read_known(tensors[i], &seen) or not is_at(self.kept + i, &seen):
                return False
        return True


@cython.final
cdef class Watch:
    """The tensors that a plan was made for: looks whether they are where they were, and for their gradients.

    Parameters
    ----------
    reader : Reader
    lists : list of list
        All parameters, as the groups have them.
    members : sequence of int
        The numbers of those parameters that the plan updates.
    tensors : list of sequence
        Of each, the tensors that lie as it does: itself, then its slots.
    Attributes
    ----------
    memory : ndarray
        The gradients that `read_gradients` found, as `buffers.MEMORY`.
    gradients : list
        The same as tensors, which keeps them alive.
    """

    cdef readonly object memory
    cdef readonly list gradients
    cdef Reader reader
    cdef list params, tensors, seen
    cdef Memory* records
    cdef Py_ssize_t n
    cdef int* number_of  # of a parameter among the members, -1 if it is none
    cdef Location* kept
    cdef Py_ssize_t width

    def __cinit__(self, Reader reader not None, list lists not None, list members not None,
                  list tensors not None):
        cdef Py_ssize_t i, k
        self.reader, self.tensors = reader, [tuple(of) for of in tensors]
        self.params = [p for params in lists for p in params]
        self.n, self.gradients = len(tensors), [None] * len(tensors)
        self.memory = np.zeros(self.n, buffers.MEMORY)
        self.records = <Memory*> cnp.PyArray_DATA(self.memory)
        self.width = max([len(of) for of in self.tensors], default=0)
        self.number_of = <int*> calloc(max(len(self.params), 1), sizeof(int))
        self.kept = <Location*> calloc(max(self.n * self.width, 1), sizeof(Location))
        if self.number_of == NULL or self.kept == NULL:
            raise MemoryError
        for i in range(len(self.params)):
            self.number_of[i] = -1
        for k, i in enumerate(members):
            self.number_of[i] = k
        for i in range(self.n):
            for k, tensor in enumerate(self.tensors[i]):
                locate(reader, tensor, self.kept + i * self.width + k)

    def __dealloc__(self):
        free(self.number_of)
        free(self.kept)

    def remember(self, state):
        """Remember which objects `state` holds, a dict of a dict of slots for each parameter."""
        self.seen = objects_in(state)

    def release(self):
        """Let the gradients go."""
        cdef Py_ssize_t i
        for i in range(self.n):
            self.gradients[i] = None

    def read_gradients(self, list lists not None, state):
        """Return the numbers of members whose gradient kernels cannot read where it lies; None if all is stale.

        It is stale when a parameter, a slot (of `state`, once it is remembered) or its memory is another one, and
        when a parameter that is no member has a gradient.
        """
        cdef Py_ssize_t i = 0, total = len(self.params), number, ahead = 0
        cdef list to_copy = []
        if self.seen is not None and not same(self.seen, state):
            return None
        for params in lists:
            for p in <list?> params:
                if i >= total or p is not <object> self.params[i]:
                    return None
                number = self.number_of[i]
                i += 1
                if number < 0:
                    if p.grad is not None:
                        return None
                    continue
                while ahead < min(number + AHEAD, self.n):
                    self.prefetch(ahead)
                    ahead += 1
                gradient = self.reader.gradient_of(p)
                self.gradients[number] = gradient
                if not self.read_gradient(number, gradient, to_copy):
                    return None
        return to_copy if i == total else None

    cdef void prefetch(self, Py_ssize_t i) noexcept:
        # Let the processor fetch the tensors of a member: their objects, and about 200 bytes inside.
        cdef Py_ssize_t k, width = len(<tuple> self.tensors[i])
        cdef const char* inside
        for k in range(width):
            inside = <const char*> self.kept[i * self.width + k].inside
            prefetch_read(<const void*> <PyObject*> (<tuple> self.tensors[i])[k])
            if inside != NULL:
                prefetch_read(inside - 64)
                prefetch_read(inside)
                prefetch_read(inside + 64)

    cdef bint read_gradient(self, Py_ssize_t i, object gradient, list to_copy) except -1:
        # Fill in the record of a gradient; return whether the tensors of its parameter are where they were.
        cdef Memory* m = self.records + i
        cdef TensorInfo weight, seen
        cdef Py_ssize_t k
        cdef tuple tensors = <tuple> self.tensors[i]
        cdef bint plain = gradient is not None and self.reader.plain(gradient)  # first: it lets other threads run
        if not self.reader.read_known(tensors[0], &weight) or not is_at(&self.kept[i * self.width], &weight):
            return False
        if not dense(&weight):
            return False
        for k in range(1, len(tensors)):
            if not (self.reader.read_known(tensors[k], &seen) and is_at(&self.kept[i * self.width + k], &seen)
                    and alike(&seen, &weight)):
                return False
        m.format, m.writable = -1, 1
        if gradient is not None:
            if (plain and self.reader.read_known(gradient, &seen) and are_numbers(seen.format)
                    and alike(&seen, &weight) and aligned(&seen)):
                m.address, m.size, m.format = seen.address, seen.size, seen.format
            else:
                to_copy.append(i)
        return True

    def replace(self, Py_ssize_t i, gradient):
        """Let a member have another gradient in this step; return whether kernels can read it."""
        cdef list to_copy = []
        self.gradients[i] = gradient
        return self.read_gradient(i, gradient, to_copy) and len(to_copy) == 0


cdef bint aligned(const TensorInfo* seen) noexcept:
    return seen.address % (8 if seen.format == F64 else 4 if seen.format == F32 else 2) == 0


cdef bint is_at(const Location* kept, const TensorInfo* seen) noexcept:
    return kept.address == seen.address and kept.size == seen.size and kept.format == seen.format


cdef list objects_in(state):
    # Everything that a dict of dicts holds, in order.
    found = []
    for key, inner in state.items():
        found += [key, inner, *(inner.values() if type(inner) is dict else ())]
    return found


cdef bint same(list seen, object state) except -1:
    # Whether a dict of dicts holds the same objects as when they were remembered.
    cdef Py_ssize_t at = 0, i = 0, k, total = len(seen)
    cdef PyObject *key
    cdef PyObject *inner
    cdef PyObject *value
    while PyDict_Next(state, &i, &key, &inner):
        if at + 1 >= total or <PyObject*> seen[at] != key or <PyObject*> seen[at + 1] != inner:
            return False
        at += 2
        k = 0
        while type(<object> inner) is dict and PyDict_Next(<object> inner, &k, NULL, &value):
            if at >= total or <PyObject*> seen[at] != value:
                return False
            at += 1
    return at == total
