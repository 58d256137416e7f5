# cython: freethreading_compatible = True
include "common.pxi"
