// Arrays of the oracle: NumPy float64, C-contiguous.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace oracle {

namespace py = pybind11;

using std::int64_t;
using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using Vector = std::vector<double>;

inline void require(bool condition, const std::string& sentence) {
    if (!condition) throw std::invalid_argument("oracle: " + sentence);
}

inline Array zeros(std::vector<py::ssize_t> shape) {
    Array result(std::move(shape));
    std::fill_n(result.mutable_data(), result.size(), 0.0);
    return result;
}

}  // namespace oracle
