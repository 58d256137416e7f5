include "driver.pxi"
