// The commanding process's end of the servo loop, as Python classes.
#pragma once

#include <nanobind/nanobind.h>

namespace vlar1 {
void bind_servo(nanobind::module_& m);
}
