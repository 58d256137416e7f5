# DLPack 1.x, as in dlpack.h, with the C exchange API of a class; and our formats by its codes.

cdef enum:
    MAX_AXES = 64  # PyTorch's own limit
    MAJOR = 1  # version of DLPack
    CPU = 1  # kDLCPU
    INT = 0  # kDLInt
    UINT = 1  # kDLUInt
    FLOAT = 2  # kDLFloat
    BFLOAT = 4  # kDLBfloat

cdef struct Version:
    uint32_t major
    uint32_t minor

cdef struct Header:
    Version version
    Header* previous

cdef struct Device:
    int kind
    int32_t number

cdef struct DataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct DLTensor:
    void* data
    Device device
    int32_t ndim
    DataType dtype
    int64_t* shape
    int64_t* strides
    uint64_t byte_offset

cdef struct ExchangeAPI:
    Header header
    void* allocate
    void* managed
    void* imported
    int (*read)(void*, DLTensor*) noexcept
    void* stream

cdef list NAMES = [*_declared.FORMATS]
cdef int F32 = NAMES.index("float32"), F64 = NAMES.index("float64")
cdef int F16 = NAMES.index("float16"), BF16 = NAMES.index("bfloat16")

# Codes, and the lower bits of masters: found where they lie, never read as numbers.
cdef list LOCATED = [*NAMES, "uint8", "int16"]
cdef int BYTES = LOCATED.index("uint8"), WORDS = LOCATED.index("int16")


cdef bint are_numbers(int format) noexcept:
    return format < BYTES


cdef int format_of(int code, int bits) noexcept:
    if code == UINT:
        return BYTES if bits == 8 else -1
    if code == INT:
        return WORDS if bits == 16 else -1
    if code == FLOAT:
        return F32 if bits == 32 else F64 if bits == 64 else F16 if bits == 16 else -1
    return BF16 if code == BFLOAT and bits == 16 else -1
