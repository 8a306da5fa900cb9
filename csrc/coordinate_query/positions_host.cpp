// Where free queries fall on the LR map, as positions.py defines it for coordinates, and bilinear
// samples at such positions, back to the image. In torch the same takes some sixty short passes
// over the queries, each of them a start and a wait for all threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../common/checks.h"
#include "coordinate_query.h"

namespace c2d {
namespace {

constexpr int64_t kPositions = 4096;  // that a thread takes at once
// A position this little before a cell, in cells, or a part of one, in parts, counts as on it: so
// that rounding does not decide where positions lie exactly on an edge.
constexpr double kCellMargin = 1.0 / (1 << 13), kDigitMargin = 1.0 / (1 << 10);

// One axis of all queries.
template <class T>
struct AxisOut {
    int64_t *low, *high;
    T *t, *digits;
};

// coordinate[2 i] over `length` pixels, in its own type Coordinate; the result in T. A product is
// exact wherever it is added to something: contracted or not, the results are the same.
template <class Coordinate, class T>
void place(const Coordinate* coordinate, int64_t begin, int64_t end, int64_t count, int64_t length,
           int64_t levels, const AxisOut<T>& out) {
    const Coordinate last = static_cast<Coordinate>(length - 1);
    for (int64_t i = begin; i < end; ++i) {
        const Coordinate u = (coordinate[2 * i] + 1) * static_cast<Coordinate>(length) / 2 -
                             static_cast<Coordinate>(0.5);
        const Coordinate low = std::floor(u + static_cast<Coordinate>(kCellMargin));
        const Coordinate t = u - low, next = low + 1;
        // written so that a coordinate that is not a number falls on pixel 0
        out.low[i] = low > 0 ? static_cast<int64_t>(std::min(low, last)) : 0;
        out.high[i] = next > 0 ? static_cast<int64_t>(std::min(next, last)) : 0;
        out.t[i] = static_cast<T>(t);
        for (int64_t level = 0; level < levels; ++level) {
            const int64_t cells = int64_t{2} << level;
            const Coordinate scaled =
                t * static_cast<Coordinate>(cells) + static_cast<Coordinate>(kDigitMargin);
            const Coordinate most = static_cast<Coordinate>(cells - 1);
            const int64_t digit = scaled > 0 ? static_cast<int64_t>(std::min(scaled, most)) : 0;
            out.digits[level * count + i] = static_cast<T>(digit % 2);
        }
    }
}

// Where free coordinates (B, queries, 2) fall on the map of features (positions.py), for `levels`
// digits: low, high, t and digits of y, then of x, in the type of features.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
coordinate_query_positions(const Tensor& coords, const Tensor& features, int64_t levels) {
    check_floating_cpu(features, "features", 4);
    check_floating_cpu(coords, "coords", 3);
    STD_TORCH_CHECK(coords.size(2) == 2 && levels >= 0 && levels <= kMostLevels &&
                        features.size(1) >= 1 && features.size(2) >= 1,
                    "coords must be (batch, queries, 2), levels at most ", kMostLevels, ".");
    const Tensor places = torch::stable::contiguous(coords);
    const int64_t batch = coords.size(0), queries = coords.size(1), count = batch * queries;
    const auto numbers = [&] { return torch::stable::new_empty(features, {batch, queries}); };
    const auto pixels = [&] {
        return torch::stable::new_empty(features, {batch, queries}, ScalarType::Long);
    };
    const auto digits = [&] {
        return torch::stable::new_empty(features, {levels, batch, queries});
    };
    const Tensor low[2] = {pixels(), pixels()}, high[2] = {pixels(), pixels()};
    const Tensor t[2] = {numbers(), numbers()}, digit[2] = {digits(), digits()};
    const auto run = [&]<class Coordinate, class T>(Coordinate, T) {
        const Coordinate* from = places.const_data_ptr<Coordinate>();
        AxisOut<T> out[2];
        for (int axis = 0; axis < 2; ++axis) {
            out[axis] = {low[axis].mutable_data_ptr<int64_t>(),
                         high[axis].mutable_data_ptr<int64_t>(), t[axis].mutable_data_ptr<T>(),
                         digit[axis].mutable_data_ptr<T>()};
        }
        const int64_t height = features.size(1), width = features.size(2);
        torch::stable::parallel_for(0, count, kPositions, [&](int64_t begin, int64_t end) {
            place(from, begin, end, count, height, levels, out[0]);
            place(from + 1, begin, end, count, width, levels, out[1]);
        });
    };
    const bool coordinates_double = coords.scalar_type() == ScalarType::Double;
    if (features.scalar_type() == ScalarType::Double) {
        coordinates_double ? run(double{}, double{}) : run(float{}, double{});
    } else {
        coordinates_double ? run(double{}, float{}) : run(float{}, float{});
    }
    return {low[0], high[0], t[0], digit[0], low[1], high[1], t[1], digit[1]};
}

// The gradient of the image, (B, height, width, 3), from that of bilinear samples of it at such
// positions, (B, queries, 3).
Tensor coordinate_query_image_backward(const Tensor& grad, const Tensor& y_low,
                                       const Tensor& y_high, const Tensor& y_t, const Tensor& x_low,
                                       const Tensor& x_high, const Tensor& x_t, int64_t height,
                                       int64_t width) {
    check_floating_cpu(grad, "grad", 3);
    STD_TORCH_CHECK(grad.is_contiguous() && grad.size(2) == 3, "grad must be dense RGB.");
    const int64_t batch = grad.size(0), queries = grad.size(1);
    for (const Tensor* places : {&y_low, &y_high, &x_low, &x_high, &y_t, &x_t}) {
        const bool is_t = places == &y_t || places == &x_t;
        STD_TORCH_CHECK(places->is_cpu() && places->is_contiguous() && places->dim() == 2 &&
                            places->size(0) == batch && places->size(1) == queries &&
                            places->scalar_type() == (is_t ? grad.scalar_type() : ScalarType::Long),
                        "positions must be dense (batch, queries), neighbours int64 and t of the "
                        "type of grad.");
        const int64_t* index = is_t ? nullptr : places->const_data_ptr<int64_t>();
        const int64_t length = places == &y_low || places == &y_high ? height : width;
        for (int64_t i = 0; !is_t && i < batch * queries; ++i) {
            STD_TORCH_CHECK(index[i] >= 0 && index[i] < length, "neighbours must be on the map.");
        }
    }
    const Tensor out = torch::stable::new_zeros(grad, {batch, height, width, 3});
    const int64_t* const rows[2] = {y_low.const_data_ptr<int64_t>(),
                                    y_high.const_data_ptr<int64_t>()};
    const int64_t* const columns[2] = {x_low.const_data_ptr<int64_t>(),
                                       x_high.const_data_ptr<int64_t>()};
    const auto run = [&]<class T>(T) {
        const T *from = grad.const_data_ptr<T>(), *down = y_t.const_data_ptr<T>();
        const T* across = x_t.const_data_ptr<T>();
        T* const to = out.mutable_data_ptr<T>();
        torch::stable::parallel_for(0, batch, 1, [&](int64_t first, int64_t last) {
            for (int64_t q = first * queries; q < last * queries; ++q) {
                T* const image = to + q / queries * height * width * 3;
                const T weights[2][2] = {{1 - down[q], down[q]}, {1 - across[q], across[q]}};
                for (int64_t tap = 0; tap < 4; ++tap) {
                    const int64_t y = rows[tap / 2][q], x = columns[tap % 2][q];
                    const T weight = weights[0][tap / 2] * weights[1][tap % 2];
                    for (int64_t c = 0; c < 3; ++c) {
                        image[(y * width + x) * 3 + c] += weight * from[q * 3 + c];
                    }
                }
            }
        });
    };
    grad.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "coordinate_query_positions(Tensor coords, Tensor features, int levels) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coordinate_query_image_backward(Tensor grad, Tensor y_low, Tensor y_high, Tensor y_t, "
        "Tensor x_low, Tensor x_high, Tensor x_t, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("coordinate_query_positions", TORCH_BOX(&c2d::coordinate_query_positions));
    m.impl("coordinate_query_image_backward", TORCH_BOX(&c2d::coordinate_query_image_backward));
}
