// Channel correlation on the CPU, host side: windows, strips, threads and scratch memory. The
// arithmetic and its costs are in kernel.cpp.
//
// Two parallel passes over strips (some rows of one window each): the first makes each strip's
// partial gram matrices, the second sums the partials of its window and multiplies. Strips and the
// order of every sum depend on the shapes alone, so the result is bitwise the same for any number
// of threads, and one 64 x 64 window keeps several threads busy.
#include "channel_correlation.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../common/checks.h"
#include "../common/isa.h"

namespace c2d {
namespace {

constexpr int64_t kStripTokens = 512;             // tokens of a strip of a whole window, about
constexpr int64_t kSmallTask = int64_t{1} << 21;  // multiply-adds not worth another thread

template <class T>
const CorrelationKernels<T>& kernels();
template <>
const CorrelationKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(correlation_float32);
}
template <>
const CorrelationKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(correlation_float64);
}

// How the map is cut: windows from (0, 0), the last of a row or column perhaps smaller, and each
// window into strips of whole rows.
struct Grid {
    int64_t height, width, channels, window_height, window_width;
    int64_t down, across, windows;  // windows along an axis and in all images
    int64_t strip_rows, strips;     // rows of a strip, strips of a whole window

    Grid(const Tensor& map, int64_t asked_height, int64_t asked_width)
        : height(map.size(1)),
          width(map.size(2)),
          channels(map.size(3)),
          window_height(std::min(asked_height, height)),
          window_width(std::min(asked_width, width)) {
        down = (height + window_height - 1) / window_height;
        across = (width + window_width - 1) / window_width;
        windows = map.size(0) * down * across;
        strip_rows = std::clamp<int64_t>(kStripTokens / window_width, 1, window_height);
        strips = (window_height + strip_rows - 1) / strip_rows;
    }

    struct Place {
        int64_t image, top, left, rows, columns;
    };

    Place window(int64_t index) const {
        const int64_t top = index / across % down * window_height;
        const int64_t left = index % across * window_width;
        return {index / across / down, top, left, std::min(window_height, height - top),
                std::min(window_width, width - left)};
    }

    // The strip of a window; its rows are zero or less past the end of a border window.
    Place strip(int64_t index) const {
        Place place = window(index / strips);
        const int64_t start = index % strips * strip_rows;
        place.top += start;
        place.rows = std::min(strip_rows, place.rows - start);
        return place;
    }

    int64_t grain(int64_t multiply_adds_per_token) const {
        const int64_t task = strip_rows * window_width * multiply_adds_per_token;
        return std::max<int64_t>(1, kSmallTask / std::max<int64_t>(1, task));
    }
};

// A channels-last map and the strip of it at a place.
template <class T>
struct Map {
    T* data;
    int64_t image_stride, row_stride, token_stride;

    Map(const Tensor& tensor, T* pointer)
        : data(pointer),
          image_stride(tensor.stride(0)),
          row_stride(tensor.stride(1)),
          token_stride(tensor.stride(2)) {}

    Strip<T> at(const Grid::Place& place) const {
        return {
            data + place.image * image_stride + place.top * row_stride + place.left * token_stride,
            row_stride, token_stride};
    }
};

template <class T>
Map<const T> input(const Tensor& tensor) {
    return {tensor, tensor.const_data_ptr<T>()};
}

template <class T>
Map<T> output(const Tensor& tensor) {
    return {tensor, tensor.mutable_data_ptr<T>()};
}

Tensor scratch_like(const Tensor& tensor, int64_t elements) {
    return torch::stable::new_empty(tensor, {elements});
}

// sum of the partial matrices of one window, times scale, in the order of its strips
template <class T>
void sum_partials(const T* partials, int64_t count, int64_t stride, int64_t elements, T scale,
                  T* sum) {
    std::copy(partials, partials + elements, sum);
    for (int64_t p = 1; p < count; ++p) {
        const T* partial = partials + p * stride;
        for (int64_t i = 0; i < elements; ++i) {
            sum[i] += partial[i];
        }
    }
    for (int64_t i = 0; i < elements; ++i) {
        sum[i] *= scale;
    }
}

template <class T>
void forward(const Grid& grid, const Tensor& q_tensor, const Tensor& v_tensor,
             const Tensor& out_tensor) {
    const auto& kernel = kernels<T>();
    const Map<const T> q = input<T>(q_tensor), v = input<T>(v_tensor);
    const Map<T> out = output<T>(out_tensor);
    const int64_t C = grid.channels, square = C * C;
    const Tensor partial_tensor = scratch_like(v_tensor, grid.windows * grid.strips * square);
    const Tensor matrix_tensor = scratch_like(v_tensor, grid.windows * square);
    T* partials = partial_tensor.mutable_data_ptr<T>();
    T* matrices = matrix_tensor.mutable_data_ptr<T>();

    torch::stable::parallel_for(0, grid.windows * grid.strips, grid.grain(square),
                                [&](int64_t begin, int64_t end) {
                                    for (int64_t s = begin; s < end; ++s) {
                                        const Grid::Place place = grid.strip(s);
                                        if (place.rows > 0) {
                                            kernel.gram(place.rows, place.columns, C, v.at(place),
                                                        q.at(place), partials + s * square);
                                        }
                                    }
                                });
    torch::stable::parallel_for(
        0, grid.windows, grid.grain(square), [&](int64_t begin, int64_t end) {
            for (int64_t w = begin; w < end; ++w) {
                const Grid::Place place = grid.window(w);
                const int64_t count = (place.rows + grid.strip_rows - 1) / grid.strip_rows;
                sum_partials(partials + w * grid.strips * square, count, square, square,
                             T(1) / T(place.rows * place.columns), matrices + w * square);
            }
        });
    torch::stable::parallel_for(
        0, grid.windows * grid.strips, grid.grain(square), [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s) {
                const Grid::Place place = grid.strip(s);
                if (place.rows > 0) {
                    kernel.apply(place.rows, place.columns, C, v.at(place),
                                 matrices + s / grid.strips * square, {}, nullptr, out.at(place));
                }
            }
        });
}

// With M = q^T v / n and K = grad^T v / n (K is dM / n transposed):
//   dv = grad M + q K,   dq = v K^T.
constexpr int64_t kSums = 2, kMatrices = 3;  // of a strip, M and K; of a window, K^T as well

template <class T>
void backward(const Grid& grid, const Tensor& grad_tensor, const Tensor& q_tensor,
              const Tensor& v_tensor, const Tensor& dq_tensor, const Tensor& dv_tensor) {
    const auto& kernel = kernels<T>();
    const Map<const T> grad = input<T>(grad_tensor), q = input<T>(q_tensor), v = input<T>(v_tensor);
    const Map<T> dq = output<T>(dq_tensor), dv = output<T>(dv_tensor);
    const int64_t C = grid.channels, square = C * C;
    const Tensor partial_tensor =
        scratch_like(v_tensor, grid.windows * grid.strips * kSums * square);
    const Tensor matrix_tensor = scratch_like(v_tensor, grid.windows * kMatrices * square);
    T* partials = partial_tensor.mutable_data_ptr<T>();
    T* matrices = matrix_tensor.mutable_data_ptr<T>();

    torch::stable::parallel_for(
        0, grid.windows * grid.strips, grid.grain(kSums * square), [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s) {
                const Grid::Place place = grid.strip(s);
                if (place.rows > 0) {
                    T* partial = partials + s * kSums * square;
                    kernel.gram(place.rows, place.columns, C, q.at(place), v.at(place), partial);
                    kernel.gram(place.rows, place.columns, C, grad.at(place), v.at(place),
                                partial + square);
                }
            }
        });
    torch::stable::parallel_for(
        0, grid.windows, grid.grain(kSums * square), [&](int64_t begin, int64_t end) {
            for (int64_t w = begin; w < end; ++w) {
                const Grid::Place place = grid.window(w);
                const int64_t count = (place.rows + grid.strip_rows - 1) / grid.strip_rows;
                T* matrix = matrices + w * kMatrices * square;
                sum_partials(partials + w * grid.strips * kSums * square, count, kSums * square,
                             kSums * square, T(1) / T(place.rows * place.columns), matrix);
                const T* K = matrix + square;
                T* K_transposed = matrix + 2 * square;
                for (int64_t i = 0; i < C; ++i) {
                    for (int64_t j = 0; j < C; ++j) {
                        K_transposed[j * C + i] = K[i * C + j];
                    }
                }
            }
        });
    torch::stable::parallel_for(
        0, grid.windows * grid.strips, grid.grain(kMatrices * square),
        [&](int64_t begin, int64_t end) {
            for (int64_t s = begin; s < end; ++s) {
                const Grid::Place place = grid.strip(s);
                if (place.rows > 0) {
                    const T* M = matrices + s / grid.strips * kMatrices * square;
                    kernel.apply(place.rows, place.columns, C, grad.at(place), M, q.at(place),
                                 M + square, dv.at(place));
                    kernel.apply(place.rows, place.columns, C, v.at(place), M + 2 * square, {},
                                 nullptr, dq.at(place));
                }
            }
        });
}

void check(const Tensor& q, const Tensor& v, int64_t window_height, int64_t window_width) {
    check_floating_cpu(q, "q", 4);
    check_floating_cpu(v, "v", 4);
    check_same(v, "v", q, "q");
    STD_TORCH_CHECK(window_height > 0 && window_width > 0, "window sizes must be positive, not ",
                    window_height, " and ", window_width, ".");
}

// A dense tensor of the same shape, whatever the strides of the argument.
Tensor dense_like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

// out = v (q^T v / n)^T in each window of n tokens; q, v (B, H, W, C), float32 or float64.
Tensor channel_correlation(const Tensor& q, const Tensor& v, int64_t window_height,
                           int64_t window_width) {
    check(q, v, window_height, window_width);
    const Tensor out = dense_like(v);
    if (out.numel() == 0) {
        return out;
    }
    const Tensor q_dense = dense_channels(q), v_dense = dense_channels(v);
    const Grid grid(v, window_height, window_width);
    if (v.scalar_type() == ScalarType::Double) {
        forward<double>(grid, q_dense, v_dense, out);
    } else {
        forward<float>(grid, q_dense, v_dense, out);
    }
    return out;
}

// (dq, dv) of channel_correlation.
std::tuple<Tensor, Tensor> channel_correlation_backward(const Tensor& grad, const Tensor& q,
                                                        const Tensor& v, int64_t window_height,
                                                        int64_t window_width) {
    check(q, v, window_height, window_width);
    check_floating_cpu(grad, "grad", 4);
    check_same(grad, "grad", v, "v");
    const Tensor dq = dense_like(q), dv = dense_like(v);
    if (dv.numel() == 0) {
        return {dq, dv};
    }
    const Tensor grad_dense = dense_channels(grad), q_dense = dense_channels(q),
                 v_dense = dense_channels(v);
    const Grid grid(v, window_height, window_width);
    if (v.scalar_type() == ScalarType::Double) {
        backward<double>(grid, grad_dense, q_dense, v_dense, dq, dv);
    } else {
        backward<float>(grid, grad_dense, q_dense, v_dense, dq, dv);
    }
    return {dq, dv};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def("channel_correlation(Tensor q, Tensor v, int window_height, int window_width) -> Tensor");
    m.def(
        "channel_correlation_backward(Tensor grad, Tensor q, Tensor v, int window_height, "
        "int window_width) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("channel_correlation", TORCH_BOX(&c2d::channel_correlation));
    m.impl("channel_correlation_backward", TORCH_BOX(&c2d::channel_correlation_backward));
}
