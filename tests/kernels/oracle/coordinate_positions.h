// Coordinate query: where the queries lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "arrays.h"

namespace oracle {

inline int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// Position of a query along one axis: the cell it falls in, its offset there, and the offset's
// binary digits, coarse to fine.
struct Position {
    int64_t cell;
    double offset;
    std::vector<int64_t> digits;
};

// Output pixel i of n_out over an axis of n: u = a/b, a = (2i+1)n - n_out and b = 2 n_out.
inline Position on_grid(int64_t i, int64_t n, int64_t n_out, int64_t levels) {
    const int64_t a = (2 * i + 1) * n - n_out, b = 2 * n_out;
    Position position{floor_divide(a, b), 0, {}};
    // The last 2^-13 of a cell counts as the next one: floor(u + 2^-13).
    if ((a - position.cell * b) * 8192 >= b * 8191) ++position.cell;
    const int64_t rest =
        a - position.cell * b;  // offset = rest / b, from -2^-13 to below 1 - 2^-13
    position.offset = static_cast<double>(rest) / static_cast<double>(b);
    for (int64_t l = 0; l < levels; ++l) {
        const int64_t parts = int64_t{1} << (l + 1);
        // floor(offset * parts + 2^-10), over the common denominator 1024 b
        const int64_t part = floor_divide(1024 * parts * rest + b, 1024 * b);
        position.digits.push_back(std::clamp<int64_t>(part, 0, parts - 1) % 2);
    }
    return position;
}

// A coordinate in [-1, 1] (pixel centres) over an axis of n: u = (y + 1) n / 2 - 1/2.
inline Position at_coordinate(double coordinate, int64_t n, int64_t levels) {
    const double u = (coordinate + 1) * static_cast<double>(n) / 2 - 0.5;
    const double cell = std::floor(u + std::ldexp(1.0, -13));
    Position position{static_cast<int64_t>(cell), u - cell, {}};
    for (int64_t l = 0; l < levels; ++l) {
        const double parts = std::ldexp(1.0, static_cast<int>(l) + 1);
        const double part = std::floor(position.offset * parts + std::ldexp(1.0, -10));
        position.digits.push_back(static_cast<int64_t>(std::clamp(part, 0.0, parts - 1)) % 2);
    }
    return position;
}

// Cells (n,), offsets (n,) and digits (n, levels) of some positions of one axis.
inline std::tuple<Integers, Array, Integers> as_arrays(const std::vector<Position>& positions,
                                                       int64_t levels) {
    const auto n = static_cast<py::ssize_t>(positions.size());
    Integers cells(n), digits({n, static_cast<py::ssize_t>(levels)});
    Array offsets(n);
    for (py::ssize_t i = 0; i < n; ++i) {
        cells.mutable_at(i) = positions[i].cell;
        offsets.mutable_at(i) = positions[i].offset;
        for (int64_t l = 0; l < levels; ++l) digits.mutable_at(i, l) = positions[i].digits[l];
    }
    return {cells, offsets, digits};
}

inline std::tuple<Integers, Array, Integers> grid_positions(int64_t n, int64_t n_out,
                                                            int64_t levels) {
    std::vector<Position> positions;
    for (int64_t i = 0; i < n_out; ++i) positions.push_back(on_grid(i, n, n_out, levels));
    return as_arrays(positions, levels);
}

inline std::tuple<Integers, Array, Integers> coordinate_positions(const Array& coordinates,
                                                                  int64_t n, int64_t levels) {
    std::vector<Position> positions;
    for (py::ssize_t i = 0; i < coordinates.size(); ++i)
        positions.push_back(at_coordinate(coordinates.at(i), n, levels));
    return as_arrays(positions, levels);
}

}  // namespace oracle
