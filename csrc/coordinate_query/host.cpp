// The coordinate query on the CPU, host side: bands of output rows (or runs of free queries), the
// tables of the LR pixels that they need, chunks, threads. The arithmetic and its costs are in
// kernel.cpp.
//
// A band is a few output rows and makes the table of the LR rows it reads for itself: neighbouring
// bands share a row, which costs a little twice and keeps memory small at any image size. Sums over
// queries are made chunk by chunk in double and band by band in their order, so the picture is the
// same for any number of threads.
#include "coordinate_query.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/isa.h"
#include "arguments.h"

namespace c2d {
namespace {

constexpr int64_t kTableBytes = int64_t{1} << 20;  // of a band's table, about
constexpr int64_t kTableRows = 8;                  // LR rows of it, at most
constexpr int64_t kRunOfQueries = 32 * kChunk;     // free queries of a task

template <class T>
const QueryKernels<T>& kernels() {
    if constexpr (sizeof(T) == sizeof(double)) {
        return C2D_FOR_ISA(query_float64);
    } else {
        return C2D_FOR_ISA(query_float32);
    }
}

template <class T>
class Decoder {
  public:
    explicit Decoder(const QueryArguments& arguments) : in(arguments), kernel(kernels<T>()) {
        const int64_t C = in.channels();
        const QueryLine line(in);
        const T* weights = in.weights.const_data_ptr<T>();
        const auto linear = [&](const QueryLine::Linear& at) {
            return packed(weights + at.at, weights + at.bias(), at.outputs, at.inputs);
        };
        made.width = C;
        made.levels = in.levels;
        made.heads = in.heads;
        made.attentions = in.attentions;
        zeros.assign(C, T(0));
        // One after the other: the kernel finds tap number i behind i times the first one's panels.
        std::vector<T>& panels =
            store.emplace_back(kNeighbours * kernel.pack(nullptr, C, C, nullptr));
        for (int64_t tap = 0; tap < kNeighbours; ++tap) {
            kernel.pack(weights + line.taps + tap * C * C, C, C,
                        panels.data() + tap * panels.size() / kNeighbours);
        }
        made.taps = {panels.data(), zeros.data(), C, kNeighbours * C};
        made.extras = weights + line.extras;
        made.row_sums = weights + line.row_sums;
        made.bias = weights + line.bias;
        for (int64_t l = 0; l < in.levels; ++l) {
            if (l > 0) {
                made.level[l].fc1 = linear(line.fc1[l]);
            }
            made.level[l].fc2 = linear(line.fc2[l]);
        }
        const int64_t d = C / in.heads;
        for (int64_t a = 0; a < in.attentions; ++a) {
            const QueryLine::Attention& at = line.attention[a];
            const T* norms = weights + at.norms;
            made.attention[a] = {linear(at.key_value), norms,         norms + d,
                                 norms + 2 * d,        norms + 3 * d, linear(at.proj2)};
        }
        const int64_t done = in.folds.size(0);
        const T* fold = in.folds.const_data_ptr<T>();
        for (int64_t i = 0; i < in.batch() * done; ++i) {
            const int64_t image = i / done, a = i % done;
            const T* matrix = fold + (a * in.batch() + image) * (C * C + C);
            folds.push_back(packed(matrix, matrix + C * C, C, C));
        }
        if (in.grid()) {
            const int64_t row_bytes =
                in.width() * kernel.table_row(C).stride * static_cast<int64_t>(sizeof(T));
            const int64_t lr_rows = std::clamp<int64_t>(kTableBytes / row_bytes, 1, kTableRows);
            band = std::max<int64_t>(1, lr_rows * in.rows() / in.height());
        }
    }

    // The tasks: bands of a grid's rows, or runs of free queries.
    int64_t tasks() const {
        const int64_t length = in.grid() ? in.rows() : in.columns();
        const int64_t of_one = in.grid() ? band : kRunOfQueries;
        return in.batch() * ((length + of_one - 1) / of_one);
    }

    // Calls use(chunk, image, first query) for every chunk of a task.
    template <class Use>
    void each_chunk(int64_t task, const Use& use) const;

    const QueryArguments& in;
    const QueryKernels<T>& kernel;
    QueryDecoder<T> made = {};

  private:
    Dense<T> packed(const T* matrix, const T* bias, int64_t outputs, int64_t inputs) {
        std::vector<T>& panels = store.emplace_back(kernel.pack(nullptr, outputs, inputs, nullptr));
        kernel.pack(matrix, outputs, inputs, panels.data());
        return {panels.data(), bias, inputs, outputs};
    }

    // Positions of the query at `y` of the row axis and `x` of the column axis, in chunk place i.
    struct Axes {
        const int64_t *y_low, *y_high, *x_low, *x_high;
        const T *y_t, *x_t, *y_digits, *x_digits;
        int64_t y_level, x_level;  // between the digits of two levels
    };
    Axes axes() const {
        return {in.y_low.const_data_ptr<int64_t>(),
                in.y_high.const_data_ptr<int64_t>(),
                in.x_low.const_data_ptr<int64_t>(),
                in.x_high.const_data_ptr<int64_t>(),
                in.y_t.const_data_ptr<T>(),
                in.x_t.const_data_ptr<T>(),
                in.y_digits.const_data_ptr<T>(),
                in.x_digits.const_data_ptr<T>(),
                in.y_t.numel(),
                in.x_t.numel()};
    }

    std::vector<std::vector<T>> store;
    std::vector<T> zeros;
    std::vector<Dense<T>> folds;
    int64_t band = 1;
};

template <class T>
template <class Use>
void Decoder<T>::each_chunk(int64_t task, const Use& use) const {
    const Axes axis = axes();
    const int64_t of_image = tasks() / in.batch(), image = task / of_image;
    const int64_t part = task % of_image;
    const TableRow<T> layout = kernel.table_row(in.channels());
    int64_t row_begin = 0, row_end = 1, first = 0, end = in.columns();
    int64_t lr_begin = 0, lr_end = in.height();
    const int64_t free_base = in.grid() ? 0 : image * in.columns();
    if (in.grid()) {
        row_begin = part * band;
        row_end = std::min(row_begin + band, in.rows());
        lr_begin = *std::min_element(axis.y_low + row_begin, axis.y_low + row_end);
        lr_end = *std::max_element(axis.y_high + row_begin, axis.y_high + row_end) + 1;
    } else {
        first = part * kRunOfQueries;
        end = std::min(first + kRunOfQueries, end);
        lr_begin = *std::min_element(axis.y_low + free_base + first, axis.y_low + free_base + end);
        lr_end =
            *std::max_element(axis.y_high + free_base + first, axis.y_high + free_base + end) + 1;
    }
    std::vector<T> table((lr_end - lr_begin) * in.width() * layout.stride);
    const T* features = in.features.const_data_ptr<T>() + image * in.features.stride(0);
    for (int64_t y = lr_begin; y < lr_end; ++y) {
        kernel.table(made, features + y * in.features.stride(1), in.features.stride(2), in.width(),
                     table.data() + (y - lr_begin) * in.width() * layout.stride);
    }
    alignas(64) int64_t row[kNeighbours * kChunk] = {};
    alignas(64) T weight[kNeighbours * kChunk] = {};
    alignas(64) T extra[digits_at(kMostLevels) * kChunk] = {};
    const T* rel = in.rel_cell.const_data_ptr<T>() + (in.rel_cell.size(0) > 1 ? 2 * image : 0);
    QueryChunk<T> chunk = {};
    chunk.table = table.data();
    chunk.row = row;
    chunk.weight = weight;
    chunk.extra = extra;
    chunk.fold = folds.data() + image * in.folds.size(0);
    for (int64_t y = row_begin; y < row_end; ++y) {
        for (int64_t x = first; x < end; x += kChunk) {
            chunk.count = std::min(kChunk, end - x);
            for (int64_t i = 0; i < chunk.count; ++i) {
                const int64_t column = free_base + x + i, line = in.grid() ? y : column;
                const int64_t low = (axis.y_low[line] - lr_begin) * in.width();
                const int64_t high = (axis.y_high[line] - lr_begin) * in.width();
                const T ty = axis.y_t[line], tx = axis.x_t[column];
                const int64_t left = axis.x_low[column], right = axis.x_high[column];
                row[i] = low + left;
                row[kChunk + i] = low + right;
                row[2 * kChunk + i] = high + left;
                row[3 * kChunk + i] = high + right;
                weight[i] = (1 - ty) * (1 - tx);
                weight[kChunk + i] = (1 - ty) * tx;
                weight[2 * kChunk + i] = ty * (1 - tx);
                weight[3 * kChunk + i] = ty * tx;
                extra[i] = rel[0];
                extra[kChunk + i] = rel[1];
                for (int64_t l = 0; l < in.levels; ++l) {
                    extra[digits_at(l) * kChunk + i] = axis.y_digits[l * axis.y_level + line];
                    extra[(digits_at(l) + 1) * kChunk + i] =
                        axis.x_digits[l * axis.x_level + column];
                }
            }
            use(chunk, image, lr_begin, in.grid() ? y * in.columns() + x : x);
        }
    }
}

template <class T>
void moments(const QueryArguments& in, double* sums) {
    const Decoder<T> decoder(in);
    const int64_t d = in.channels() / in.heads, numbers = in.heads * d * d;
    const int64_t tasks = decoder.tasks(), stop = in.folds.size(0);
    std::vector<double> parts(tasks * numbers, 0.0);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            decoder.each_chunk(task, [&](const QueryChunk<T>& chunk, int64_t, int64_t, int64_t) {
                decoder.kernel.moments(decoder.made, chunk, stop, &parts[task * numbers]);
            });
        }
    });
    for (int64_t task = 0; task < tasks; ++task) {
        double* image = sums + task / (tasks / in.batch()) * numbers;
        for (int64_t i = 0; i < numbers; ++i) {
            image[i] += parts[task * numbers + i];
        }
    }
}

template <class T>
void decode(const QueryArguments& in, const Tensor& picture, T* out) {
    const Decoder<T> decoder(in);
    const T* pixels = picture.const_data_ptr<T>();
    const int64_t queries = in.rows() * in.columns(), of_image = in.height() * in.width();
    torch::stable::parallel_for(0, decoder.tasks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            decoder.each_chunk(task, [&](const QueryChunk<T>& chunk, int64_t image,
                                         int64_t lr_begin, int64_t first) {
                alignas(64) T values[3 * kChunk];
                decoder.kernel.decode(decoder.made, chunk, values);
                const T* base = pixels + (image * of_image + lr_begin * in.width()) * 3;
                T* to = out + (image * queries + first) * 3;
                for (int64_t i = 0; i < chunk.count; ++i) {
                    for (int64_t c = 0; c < 3; ++c) {
                        T bilinear = 0;
                        for (int64_t tap = 0; tap < kNeighbours; ++tap) {
                            bilinear += chunk.weight[tap * kChunk + i] *
                                        base[chunk.row[tap * kChunk + i] * 3 + c];
                        }
                        to[i * 3 + c] = values[c * kChunk + i] + bilinear;
                    }
                }
            });
        }
    });
}

// For the attention after those folded so far, the sums of k^T v over all queries, (B, heads, d, d)
// in float64.
Tensor coordinate_query_moments(const Tensor& features, const Tensor& weights, const Tensor& folds,
                                const Tensor& y_low, const Tensor& y_high, const Tensor& y_t,
                                const Tensor& y_digits, const Tensor& x_low, const Tensor& x_high,
                                const Tensor& x_t, const Tensor& x_digits, const Tensor& rel_cell,
                                int64_t levels, int64_t heads, int64_t attentions) {
    const QueryArguments in =
        checked({features, weights, folds, y_low, y_high, y_t, y_digits, x_low, x_high, x_t,
                 x_digits, rel_cell, levels, heads, attentions});
    STD_TORCH_CHECK(folds.size(0) < attentions, "no attention is left to accumulate.");
    const int64_t d = in.channels() / heads;
    const Tensor sums =
        torch::stable::new_zeros(features, {in.batch(), heads, d, d}, ScalarType::Double);
    if (in.batch() > 0 && in.y_t.numel() > 0) {
        double* data = sums.mutable_data_ptr<double>();
        features.scalar_type() == ScalarType::Double ? moments<double>(in, data)
                                                     : moments<float>(in, data);
    }
    return sums;
}

// The coordinate query's decoder (positions.py, reference.py) over a grid or free positions, with
// every attention folded into `folds`: RGB (B, queries, 3). `weights` hold the folded decoder in
// the order of native.py.
Tensor coordinate_query(const Tensor& features, const Tensor& image, const Tensor& weights,
                        const Tensor& folds, const Tensor& y_low, const Tensor& y_high,
                        const Tensor& y_t, const Tensor& y_digits, const Tensor& x_low,
                        const Tensor& x_high, const Tensor& x_t, const Tensor& x_digits,
                        const Tensor& rel_cell, int64_t levels, int64_t heads, int64_t attentions) {
    const QueryArguments in =
        checked({features, weights, folds, y_low, y_high, y_t, y_digits, x_low, x_high, x_t,
                 x_digits, rel_cell, levels, heads, attentions});
    check_floating_cpu(image, "image", 4);
    STD_TORCH_CHECK(image.scalar_type() == features.scalar_type() && image.size(3) == 3 &&
                        image.size(0) == in.batch() && image.size(1) == in.height() &&
                        image.size(2) == in.width() && folds.size(0) == attentions,
                    "image must be the RGB of features' pixels, and every attention folded.");
    const Tensor picture = torch::stable::contiguous(image);
    const Tensor out =
        torch::stable::new_empty(features, {in.batch(), in.rows() * in.columns(), 3});
    if (out.numel() > 0) {
        features.scalar_type() == ScalarType::Double
            ? decode<double>(in, picture, out.mutable_data_ptr<double>())
            : decode<float>(in, picture, out.mutable_data_ptr<float>());
    }
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "coordinate_query(Tensor features, Tensor image, Tensor weights, Tensor folds, "
        "Tensor y_low, Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, "
        "Tensor x_t, Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions) "
        "-> Tensor");
    m.def(
        "coordinate_query_moments(Tensor features, Tensor weights, Tensor folds, Tensor y_low, "
        "Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, Tensor x_t, "
        "Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("coordinate_query", TORCH_BOX(&c2d::coordinate_query));
    m.impl("coordinate_query_moments", TORCH_BOX(&c2d::coordinate_query_moments));
}
