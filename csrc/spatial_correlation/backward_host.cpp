// Spatial correlation on the CPU, backward on the host side: groups of windows, whose sums of the
// parameters' gradients are added in order.
//
// With G = p^T p / d and D = q^T grad / d in each window and head:
//   dq = grad G,   dp = p (D + D^T) + P^T grad,   dP = grad p^T,
// and dv, dweight and dweight_bias follow from dp, dbias_table from dP.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "host.h"

namespace c2d {
namespace spatial {
namespace {

constexpr int64_t kGroups = 32;     // groups of windows, at most
constexpr int64_t kSumWindows = 8;  // windows whose bias gradients are summed in float32

// The layout of CellBias for one head: [y in its cell][x][2 base_height - 1][base_width].
struct CellLayout {
    int64_t column, row, elements;

    explicit CellLayout(const Grid& grid)
        : column((2 * grid.base_height - 1) * grid.base_width),
          row(grid.width * column),
          elements((grid.cell_height * row + grid.padded + 15) / 16 * 16) {}

    // Calls visit(entry of the pooled table, place here) for every place.
    template <class Visit>
    void walk(const Grid& grid, const Visit& visit) const {
        int64_t place = 0;
        for (int64_t y = 0; y < grid.cell_height; ++y) {
            for (int64_t x = 0; x < grid.width; ++x) {
                for (int64_t m = 0; m < 2 * grid.base_height - 1; ++m) {
                    const int64_t entry = (y + grid.cell_height * (2 * grid.base_height - 2 - m)) *
                                              grid.pooled_width +
                                          x + grid.width - grid.cell_width;
                    for (int64_t cell = 0; cell < grid.base_width; ++cell) {
                        visit(entry - cell * grid.cell_width, place++);
                    }
                }
            }
        }
    }
};

// The table's gradient: each entry of the pooled table's, divided by the tokens of a cell, goes to
// the entries it was the mean of. Partial sums of the groups of windows are [group][head][entry].
template <class T>
void spread_pooled(const Grid& grid, int64_t groups, const std::vector<double>& partials,
                   const Tensor& dtable) {
    const int64_t height = 2 * grid.height - 1, width = 2 * grid.width - 1;
    T* to = dtable.mutable_data_ptr<T>();
    const int64_t work = grid.offsets() * (grid.cell_height + grid.cell_width + groups);
    for_each(grid.heads, work, [&](int64_t head) {
        std::vector<double> sum(grid.pooled(), 0), rows(height * grid.pooled_width, 0);
        for (int64_t g = 0; g < groups; ++g) {
            const double* from = partials.data() + (g * grid.heads + head) * grid.pooled();
            for (int64_t i = 0; i < grid.pooled(); ++i) {
                sum[i] += from[i];
            }
        }
        for (int64_t y = 0; y < grid.pooled_height; ++y) {
            for (int64_t r = 0; r < grid.cell_height; ++r) {
                for (int64_t x = 0; x < grid.pooled_width; ++x) {
                    rows[(y + r) * grid.pooled_width + x] += sum[y * grid.pooled_width + x];
                }
            }
        }
        std::vector<double> row(width);
        for (int64_t y = 0; y < height; ++y) {
            std::fill(row.begin(), row.end(), 0);
            for (int64_t r = 0; r < grid.cell_width; ++r) {
                for (int64_t x = 0; x < grid.pooled_width; ++x) {
                    row[x + r] += rows[y * grid.pooled_width + x];
                }
            }
            for (int64_t x = 0; x < width; ++x) {
                to[(y * width + x) * grid.heads + head] = T(row[x] / double(grid.cell_tokens()));
            }
        }
    });
}

struct Gradients {
    Tensor dq, dv, dweight, dweight_bias, dtable;
};

// What backward keeps of some windows of a group, and of the group.
template <class T>
struct Work {
    Cells<T> cells;  // p is dp in the end
    Aligned<T> d_transposed, dgram, dweight;
    Aligned<T> dbias;  // [head] in the layout of CellBias, of up to kSumWindows windows

    Work(const Grid& grid, const CellLayout& layout, int64_t windows)
        : cells(grid, windows),
          d_transposed(windows * grid.transposed_of_window()),
          dgram(windows * grid.strips * grid.gram_of_window()),
          dweight(windows * grid.base_height * grid.cell_tokens()),
          dbias(grid.heads * layout.elements) {}
};

template <class T>
struct Backward {
    const Grid& grid;
    const Map<const T> grad, q, v;
    const Map<T> dq, dv;
    const T* weight;
    const T weight_bias;
    const CellLayout layout;
    Aligned<T> bias;  // [head] in the layout of CellBias
    int64_t group, groups;
    std::vector<double> dtable;   // [group][head][entry of the pooled table]
    std::vector<double> dweight;  // [group][token of a cell, and the bias]

    Backward(const Grid& windows, const Tensor& grad_map, const Tensor& q_map, const Tensor& v_map,
             const Tensor& weights, const Tensor& shift, const Tensor& table, const Tensor& dq_map,
             const Tensor& dv_map)
        : grid(windows),
          grad(input<T>(grid, grad_map)),
          q(input<T>(grid, q_map)),
          v(input<T>(grid, v_map)),
          dq(output<T>(grid, dq_map)),
          dv(output<T>(grid, dv_map)),
          weight(weights.const_data_ptr<T>()),
          weight_bias(*shift.const_data_ptr<T>()),
          layout(grid),
          bias(grid.heads * layout.elements),
          group(std::max(kSumWindows, (grid.windows + kGroups - 1) / kGroups)),
          groups((grid.windows + group - 1) / group),
          dtable(groups * grid.heads * grid.pooled()),
          dweight(groups * (grid.cell_tokens() + 1)) {
        const std::vector<T> from = pooled<T>(grid, table);
        for_each(grid.heads, layout.elements, [&](int64_t head) {
            T* to = bias.data() + head * layout.elements;
            const T* of_head = from.data() + head * grid.pooled();
            layout.walk(grid, [&](int64_t entry, int64_t i) { to[i] = of_head[entry]; });
        });
    }

    void run() {
        const int64_t elements = kernels<T>().scratch(grid);
        if (!worth_sharing(groups)) {
            Work<T> work(grid, layout, kSumWindows);
            for (int64_t g = 0; g < groups; ++g) {
                run_group(g, kSumWindows, work, {elements, nullptr});
            }
            return;
        }
        int64_t step = kSumWindows;
        while (step > 1 && step * grid.tokens > kCachedTokens) {
            step /= 2;
        }
        torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
            Aligned<T> memory(elements);
            Work<T> work(grid, layout, step);
            for (int64_t g = begin; g < end; ++g) {
                run_group(g, step, work, {elements, &memory});
            }
        });
    }

    // A group of windows, `step` windows at a time; step divides kSumWindows and changes no sum.
    void run_group(int64_t g, int64_t step, Work<T>& work, const Scratch<T>& scratch) {
        const int64_t start = g * group, stop = std::min(start + group, grid.windows);
        for (int64_t first = start; first < stop; first += step) {
            const int64_t count = std::min(step, stop - first), done = first + count - start;
            work.cells.make(grid, v, first, count, weight, weight_bias, scratch);
            through_tokens(first, count, work, scratch);
            through_bias(first, count, work, scratch);
            if (done % kSumWindows == 0 || first + count == stop) {
                collect_bias(g, work, scratch);
            }
            through_gram(count, work, scratch);
            through_reduction(g, first, count, work, scratch);
        }
    }

    void through_tokens(int64_t first, int64_t count, Work<T>& work, const Scratch<T>& scratch) {
        const int64_t square = grid.gram_of_window();
        const int64_t each = 2 * grid.strip * grid.channels() * grid.head_dim;
        scratch.for_each(count * grid.strips, each, [&](int64_t i, T* memory) {
            const int64_t window = i / grid.strips;
            kernels<T>().backward_tokens(
                grid, i % grid.strips * grid.strip, grid.strip_tokens(i),
                q.tokens(grid, first + window), grad.tokens(grid, first + window),
                work.cells.gram.data() + window * square, dq.tokens(grid, first + window),
                work.dgram.data() + i * square, memory);
        });
    }

    void through_bias(int64_t first, int64_t count, Work<T>& work, const Scratch<T>& scratch) {
        scratch.for_each(grid.heads, count * grid.work(), [&](int64_t head, T*) {
            const int64_t place = head * layout.elements;
            for (int64_t window = 0; window < count; ++window) {
                Strip<const T> strip = grad.strip(grid, first + window);
                strip.data += head * grid.head_dim;
                const int64_t at =
                    window * grid.transposed_of_window() + head * grid.head_dim * grid.padded;
                kernels<T>().backward_bias(grid, strip, work.cells.transposed.data() + at,
                                           {bias.data() + place, layout.row, layout.column},
                                           work.d_transposed.data() + at,
                                           {work.dbias.data() + place, layout.row, layout.column});
            }
        });
    }

    void collect_bias(int64_t g, Work<T>& work, const Scratch<T>& scratch) {
        scratch.for_each(grid.heads, layout.elements, [&](int64_t head, T*) {
            T* from = work.dbias.data() + head * layout.elements;
            double* to = dtable.data() + (g * grid.heads + head) * grid.pooled();
            layout.walk(grid, [&](int64_t entry, int64_t i) { to[entry] += double(from[i]); });
            std::fill_n(from, layout.elements, T(0));
        });
    }

    void through_gram(int64_t count, Work<T>& work, const Scratch<T>& scratch) {
        const int64_t square = grid.gram_of_window();
        const int64_t each = 2 * grid.cells_of_window() * grid.head_dim;
        scratch.for_each(count, each, [&](int64_t window, T*) {
            T* dgram = work.dgram.data() + window * grid.strips * square;
            for (int64_t s = 1; s < grid.strips; ++s) {
                for (int64_t i = 0; i < square; ++i) {
                    dgram[i] += dgram[s * square + i];
                }
            }
            kernels<T>().backward_gram(
                grid, work.cells.transposed.data() + window * grid.transposed_of_window(), dgram,
                work.d_transposed.data() + window * grid.transposed_of_window(),
                work.cells.p.data() + window * grid.cells_of_window());
        });
    }

    void through_reduction(int64_t g, int64_t first, int64_t count, Work<T>& work,
                           const Scratch<T>& scratch) {
        const int64_t row = grid.base_width * grid.channels(), rows = count * grid.base_height;
        const int64_t tokens = grid.cell_tokens();
        const T* dp = work.cells.p.data();
        scratch.for_each(rows, 2 * row * tokens, [&](int64_t i, T*) {
            const int64_t window = i % count, down = i / count;
            const int64_t place = window * grid.base_height + down;
            kernels<T>().backward_reduce(grid, v.strip(grid, first + window, down), weight,
                                         dp + place * row, dv.strip(grid, first + window, down),
                                         work.dweight.data() + place * tokens);
        });
        double* sum = dweight.data() + g * (tokens + 1);
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t t = 0; t < tokens; ++t) {
                sum[t] += double(work.dweight.data()[i * tokens + t]);
            }
        }
        for (int64_t i = 0; i < rows * row; ++i) {
            sum[tokens] += double(dp[i]);
        }
    }

    void finish(const Gradients& to) const {
        spread_pooled<T>(grid, groups, dtable, to.dtable);
        const int64_t tokens = grid.cell_tokens();
        for (int64_t t = 0; t <= tokens; ++t) {
            double sum = 0;
            for (int64_t g = 0; g < groups; ++g) {
                sum += dweight[g * (tokens + 1) + t];
            }
            (t < tokens ? to.dweight.mutable_data_ptr<T>()[t]
                        : *to.dweight_bias.mutable_data_ptr<T>()) = T(sum);
        }
    }
};

template <class T>
void backward(const Grid& grid, const Tensor& grad, const Tensor& q, const Tensor& v,
              const Tensor& weight, const Tensor& weight_bias, const Tensor& table,
              const Gradients& to) {
    Backward<T> task(grid, grad, q, v, weight, weight_bias, table, to.dq, to.dv);
    task.run();
    task.finish(to);
}

}  // namespace
}  // namespace spatial

namespace {

// (dq, dv, dweight, dweight_bias, dbias_table) of spatial_correlation.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_correlation_backward(
    const Tensor& grad, const Tensor& q, const Tensor& v, const Tensor& weight,
    const Tensor& weight_bias, const Tensor& bias_table, int64_t window_height,
    int64_t window_width, int64_t base_height, int64_t base_width, int64_t num_heads) {
    spatial::check(q, v, weight, weight_bias, bias_table, window_height, window_width, base_height,
                   base_width, num_heads);
    check_floating_cpu(grad, "grad", 4);
    check_same(grad, "grad", q, "q");
    const spatial::Gradients to{spatial::dense_like(q), spatial::dense_like(v),
                                spatial::dense_like(weight), spatial::dense_like(weight_bias),
                                spatial::dense_like(bias_table)};
    if (grad.numel() == 0) {
        return {to.dq, to.dv, torch::stable::fill_(to.dweight, 0),
                torch::stable::fill_(to.dweight_bias, 0), torch::stable::fill_(to.dtable, 0)};
    }
    const bool wide = q.scalar_type() == ScalarType::Double;
    const spatial::Grid grid(
        q, window_height, window_width, base_height, base_width, num_heads,
        wide ? spatial::kernels<double>().lanes : spatial::kernels<float>().lanes);
    (wide ? spatial::backward<double>
          : spatial::backward<float>)(grid, dense_channels(grad), dense_channels(q),
                                      dense_channels(v), dense_channels(weight), weight_bias,
                                      bias_table, to);
    return {to.dq, to.dv, to.dweight, to.dweight_bias, to.dtable};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "spatial_correlation_backward(Tensor grad, Tensor q, Tensor v, Tensor weight, "
        "Tensor weight_bias, Tensor bias_table, int window_height, int window_width, "
        "int base_height, int base_width, int num_heads) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("spatial_correlation_backward", TORCH_BOX(&c2d::spatial_correlation_backward));
}
