// Spatial correlation on the CPU, host side: windows, the layouts of the bias, threads and scratch
// memory. The arithmetic on the map and its costs are in spatial_cpu.cpp.
//
// Every pass is parallel over rows of cells, strips (some tokens of one window), windows or groups
// of windows. All of these and the order of every sum depend on the shapes alone: results are
// bitwise the same for any number of threads.
#include "spatial_correlation.h"

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/isa.h"
#include "../kernels.h"

namespace c2d {
namespace {

constexpr int64_t kStripTokens = 512;             // tokens of a strip, about
constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread
constexpr int64_t kGroups = 8;                    // groups of windows in backward, at most
constexpr int64_t kLeastGroup = 8;   // windows of a group: what follows each group costs as much
constexpr int64_t kSumWindows = 32;  // windows whose bias gradients are summed in float32

template <class T>
const SpatialKernels<T>& kernels();
template <>
const SpatialKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(spatial_float32);
}
template <>
const SpatialKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(spatial_float64);
}

// Runs task(i) for each i < count, in parallel where `each` multiply-adds a task are worth it.
template <class Task>
void for_each(int64_t count, int64_t each, const Task& task) {
    const int64_t grain = std::max<int64_t>(1, kSmallTask / std::max<int64_t>(1, each));
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            task(i);
        }
    });
}

// The windows of a map and the sizes of the pooled bias table: entry (i, j) is the bias at
// y - Y cell_height = i - height + cell_height, and likewise across.
struct Grid : SpatialSizes {
    int64_t down, across, windows;
    int64_t tokens, strip, strips;        // tokens of a window and a strip, strips of a window
    int64_t pooled_height, pooled_width;  // per head

    Grid(const Tensor& map, int64_t window_height, int64_t window_width, int64_t cells_down,
         int64_t cells_across, int64_t num_heads, int64_t lanes) {
        heads = num_heads;
        head_dim = map.size(3) / heads;
        height = window_height;
        width = window_width;
        base_height = cells_down;
        base_width = cells_across;
        cell_height = height / base_height;
        cell_width = width / base_width;
        cells = base_height * base_width;
        padded = (cells + lanes - 1) / lanes * lanes;
        down = map.size(1) / height;
        across = map.size(2) / width;
        windows = map.size(0) * down * across;
        tokens = height * width;
        strip = std::clamp<int64_t>(kStripTokens / width, 1, height) * width;
        strips = (tokens + strip - 1) / strip;
        pooled_height = 2 * height - cell_height;
        pooled_width = 2 * width - cell_width;
    }

    int64_t cell_tokens() const { return cell_height * cell_width; }
    int64_t offsets() const { return (2 * height - 1) * (2 * width - 1); }
    int64_t pooled() const { return pooled_height * pooled_width; }
    int64_t cells_of_window() const { return cells * channels(); }
    int64_t turned_of_window() const { return padded * channels(); }
    int64_t gram_of_window() const { return heads * head_dim * head_dim; }
    int64_t strip_tokens(int64_t index) const {
        return std::min(strip, tokens - index % strips * strip);
    }
};

// A channels-last map: its windows, and where tokens lie in each.
template <class T>
struct Map {
    T* data;
    int64_t image, row, token;
    std::vector<int64_t> at;

    Map(const Grid& grid, const Tensor& tensor, T* pointer)
        : data(pointer), image(tensor.stride(0)), row(tensor.stride(1)), token(tensor.stride(2)) {
        for (int64_t n = 0; n < grid.tokens; ++n) {
            at.push_back(n / grid.width * row + n % grid.width * token);
        }
    }

    T* window(const Grid& grid, int64_t index) const {
        return data + index / (grid.down * grid.across) * image +
               index / grid.across % grid.down * grid.height * row +
               index % grid.across * grid.width * token;
    }

    Tokens<T> tokens(const Grid& grid, int64_t index) const {
        return {window(grid, index), at.data()};
    }

    // Row `cells` of the cells of a window.
    Strip<T> strip(const Grid& grid, int64_t index, int64_t cells = 0) const {
        return {window(grid, index) + cells * grid.cell_height * row, row, token};
    }
};

template <class T>
Map<const T> input(const Grid& grid, const Tensor& tensor) {
    return {grid, tensor, tensor.const_data_ptr<T>()};
}

template <class T>
Map<T> output(const Grid& grid, const Tensor& tensor) {
    return {grid, tensor, tensor.mutable_data_ptr<T>()};
}

// Scratch memory as large as a map, which nobody fills with zeros.
template <class T>
class Buffer {
  public:
    Buffer(const Tensor& like, int64_t elements)
        : tensor_(torch::stable::new_empty(like, {elements})),
          data_(tensor_.mutable_data_ptr<T>()) {}
    T* at(int64_t element) const { return data_ + element; }

  private:
    Tensor tensor_;
    T* data_;
};

// The table averaged over cells, [head][pooled_height][pooled_width].
template <class T>
void pool(const Grid& grid, const Tensor& table, T* pooled) {
    const int64_t height = 2 * grid.height - 1, width = 2 * grid.width - 1;
    const T* from = table.const_data_ptr<T>();
    const int64_t entry = table.stride(0), column = table.stride(1);
    for_each(grid.heads, height * width * (grid.cell_height + grid.cell_width), [&](int64_t head) {
        std::vector<T> dense(height * width), rows(grid.pooled_height * width, T(0));
        for (int64_t i = 0; i < height * width; ++i) {
            dense[i] = from[i * entry + head * column];
        }
        for (int64_t y = 0; y < grid.pooled_height; ++y) {
            for (int64_t r = 0; r < grid.cell_height; ++r) {
                const T* row = dense.data() + (y + r) * width;
                for (int64_t x = 0; x < width; ++x) {
                    rows[y * width + x] += row[x];
                }
            }
            T* to = pooled + head * grid.pooled() + y * grid.pooled_width;
            std::fill_n(to, grid.pooled_width, T(0));
            for (int64_t r = 0; r < grid.cell_width; ++r) {
                const T* row = rows.data() + y * width + r;
                for (int64_t x = 0; x < grid.pooled_width; ++x) {
                    to[x] += row[x];
                }
            }
            for (int64_t x = 0; x < grid.pooled_width; ++x) {
                to[x] /= T(grid.cell_tokens());
            }
        }
    });
}

// The bias for apply. Where a block of tokens never leaves its row, the pooled table itself will
// do. Otherwise each column of cells gets its own copy, cut to the window's width, so that the
// tokens of a window follow each other.
template <class T>
class BiasOfTokens {
  public:
    BiasOfTokens(const Grid& grid, const T* pooled)
        : direct_(grid.width % kernels<T>().block == 0),
          memory_(grid.heads * head_elements(grid) + kernels<T>().block) {
        const int64_t down = -grid.cell_height;
        T* to = memory_.data();
        if (direct_) {
            std::copy(pooled, pooled + grid.heads * grid.pooled(), to);
            bias_ = {to + (grid.height - grid.cell_height) * grid.pooled_width + grid.width -
                         grid.cell_width,
                     grid.pooled(), grid.pooled_width, down * grid.pooled_width, -grid.cell_width};
            return;
        }
        const int64_t copy = grid.pooled_height * grid.width;
        for_each(grid.heads, grid.base_width * copy, [&](int64_t head) {
            for (int64_t cell = 0; cell < grid.base_width; ++cell) {
                for (int64_t y = 0; y < grid.pooled_height; ++y) {
                    const T* row = pooled + head * grid.pooled() + y * grid.pooled_width +
                                   grid.width - (cell + 1) * grid.cell_width;
                    std::copy(row, row + grid.width,
                              to + (head * grid.base_width + cell) * copy + y * grid.width);
                }
            }
        });
        bias_ = {to + (grid.height - grid.cell_height) * grid.width, head_elements(grid),
                 grid.width, down * grid.width, copy};
    }

    const TokenBias<T>& view() const { return bias_; }

  private:
    int64_t head_elements(const Grid& grid) const {
        return direct_ ? grid.pooled() : grid.base_width * grid.pooled_height * grid.width;
    }

    bool direct_;
    Aligned<T> memory_;
    TokenBias<T> bias_;
};

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

// v reduced to cells, for all windows: p [window][cell][channel], the same turned, and p^T p / d.
template <class T>
struct Cells {
    Buffer<T> p, turned, gram;

    Cells(const Grid& grid, const Tensor& like, const Map<const T>& v, const T* weight, T bias)
        : p(like, grid.windows * grid.cells_of_window()),
          turned(like, grid.windows * grid.turned_of_window()),
          gram(like, grid.windows * grid.gram_of_window()) {
        const int64_t row = grid.base_width * grid.channels();
        for_each(grid.windows * grid.base_height, row * grid.cell_tokens(), [&](int64_t i) {
            const int64_t window = i / grid.base_height;
            kernels<T>().reduce(grid, v.strip(grid, window, i % grid.base_height), weight, bias,
                                p.at(i * row));
        });
        for_each(grid.windows, grid.cells_of_window() * grid.head_dim, [&](int64_t i) {
            kernels<T>().gram(grid, p.at(i * grid.cells_of_window()),
                              turned.at(i * grid.turned_of_window()),
                              gram.at(i * grid.gram_of_window()));
        });
    }
};

// Runs task(strip, scratch) for each strip of all windows.
template <class T, class Task>
void for_each_strip(const Grid& grid, int64_t each, const Task& task) {
    const int64_t grain = std::max<int64_t>(1, kSmallTask / (grid.strip * each));
    torch::stable::parallel_for(0, grid.windows * grid.strips, grain,
                                [&](int64_t begin, int64_t end) {
                                    Aligned<T> scratch(kernels<T>().scratch(grid));
                                    for (int64_t i = begin; i < end; ++i) {
                                        task(i, scratch.data());
                                    }
                                });
}

template <class T>
void forward(const Grid& grid, const Tensor& q_map, const Tensor& v_map, const Tensor& weight,
             const Tensor& weight_bias, const Tensor& table, const Tensor& out_map) {
    const Map<const T> q = input<T>(grid, q_map), v = input<T>(grid, v_map);
    const Map<T> out = output<T>(grid, out_map);
    const Cells<T> cells(grid, q_map, v, weight.const_data_ptr<T>(),
                         *weight_bias.const_data_ptr<T>());
    const Buffer<T> pooled(q_map, grid.heads * grid.pooled());
    pool(grid, table, pooled.at(0));
    const BiasOfTokens<T> bias(grid, pooled.at(0));
    for_each_strip<T>(grid, grid.cells_of_window(), [&](int64_t i, T* scratch) {
        const int64_t window = i / grid.strips;
        kernels<T>().apply(grid, i % grid.strips * grid.strip, grid.strip_tokens(i),
                           q.tokens(grid, window), cells.gram.at(window * grid.gram_of_window()),
                           cells.turned.at(window * grid.turned_of_window()), bias.view(),
                           out.tokens(grid, window), scratch);
    });
}

// Adds each entry of the pooled table's gradient, already divided by the tokens of a cell, to the
// entries it was the mean of. The partial sums of the groups of windows are [group][head][entry].
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

// dP p^T and the table's gradient: d_turned[window] = P^T grad turned, dtable = sum of grad p^T. A
// task is one head of a group of windows.
template <class T>
void backward_bias(const Grid& grid, const Map<const T>& grad, const Tensor& table,
                   const Buffer<T>& turned, const Buffer<T>& d_turned, const Tensor& dtable) {
    const Buffer<T> pooled(table, grid.heads * grid.pooled());
    pool(grid, table, pooled.at(0));
    const int64_t group = std::max(kLeastGroup, (grid.windows + kGroups - 1) / kGroups);
    const int64_t groups = (grid.windows + group - 1) / group;
    const CellLayout layout(grid);
    std::vector<double> partials(groups * grid.heads * grid.pooled(), 0);
    torch::stable::parallel_for(0, groups * grid.heads, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> bias(layout.elements), dbias(layout.elements);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t head = task % grid.heads, start = task / grid.heads * group;
            const int64_t stop = std::min(start + group, grid.windows);
            const int64_t channel = head * grid.head_dim;
            const T* from = pooled.at(head * grid.pooled());
            layout.walk(grid, [&](int64_t entry, int64_t i) { bias.data()[i] = from[entry]; });
            for (int64_t window = start; window < stop; ++window) {
                Strip<const T> strip = grad.strip(grid, window);
                strip.data += channel;
                const int64_t at = window * grid.turned_of_window() + channel * grid.padded;
                kernels<T>().backward_bias(
                    grid, strip, turned.at(at), {bias.data(), layout.row, layout.column},
                    d_turned.at(at), {dbias.data(), layout.row, layout.column});
                if ((window + 1 - start) % kSumWindows == 0 || window + 1 == stop) {
                    double* to = partials.data() + task * grid.pooled();
                    layout.walk(grid, [&](int64_t entry, int64_t i) {
                        to[entry] += double(dbias.data()[i]);
                    });
                    std::fill_n(dbias.data(), layout.elements, T(0));
                }
            }
        }
    });
    spread_pooled<T>(grid, groups, partials, dtable);
}

struct Gradients {
    Tensor dq, dv, dweight, dweight_bias, dtable;
};

template <class T>
void backward(const Grid& grid, const Tensor& grad_map, const Tensor& q_map, const Tensor& v_map,
              const Tensor& weight, const Tensor& weight_bias, const Tensor& table,
              const Gradients& to) {
    const auto& kernel = kernels<T>();
    const Map<const T> grad = input<T>(grid, grad_map), q = input<T>(grid, q_map),
                       v = input<T>(grid, v_map);
    const Map<T> dq = output<T>(grid, to.dq), dv = output<T>(grid, to.dv);
    const T* weights = weight.const_data_ptr<T>();
    const Cells<T> cells(grid, q_map, v, weights, *weight_bias.const_data_ptr<T>());
    const int64_t square = grid.gram_of_window();

    const Buffer<T> dgrams(q_map, grid.windows * grid.strips * square);
    for_each_strip<T>(grid, 2 * grid.channels() * grid.head_dim, [&](int64_t i, T* scratch) {
        const int64_t window = i / grid.strips;
        kernel.backward_tokens(grid, i % grid.strips * grid.strip, grid.strip_tokens(i),
                               q.tokens(grid, window), grad.tokens(grid, window),
                               cells.gram.at(window * square), dq.tokens(grid, window),
                               dgrams.at(i * square), scratch);
    });

    const Buffer<T> d_turned(q_map, grid.windows * grid.turned_of_window());
    backward_bias(grid, grad, table, cells.turned, d_turned, to.dtable);

    for_each(grid.windows, 2 * grid.cells_of_window() * grid.head_dim, [&](int64_t window) {
        T* dgram = dgrams.at(window * grid.strips * square);
        for (int64_t s = 1; s < grid.strips; ++s) {
            for (int64_t i = 0; i < square; ++i) {
                dgram[i] += dgram[s * square + i];
            }
        }
        kernel.backward_gram(grid, cells.turned.at(window * grid.turned_of_window()), dgram,
                             d_turned.at(window * grid.turned_of_window()),
                             cells.p.at(window * grid.cells_of_window()));
    });

    // The cells' buffer holds dp now.
    const int64_t row = grid.base_width * grid.channels(), rows = grid.windows * grid.base_height;
    const Buffer<T> dweights(q_map, rows * grid.cell_tokens());
    std::vector<double> dbiases(rows);
    for_each(rows, 2 * row * grid.cell_tokens(), [&](int64_t i) {
        const int64_t window = i / grid.base_height, down = i % grid.base_height;
        const T* dp = cells.p.at(i * row);
        kernel.backward_reduce(grid, v.strip(grid, window, down), weights, dp,
                               dv.strip(grid, window, down), dweights.at(i * grid.cell_tokens()));
        for (int64_t j = 0; j < row; ++j) {
            dbiases[i] += double(dp[j]);
        }
    });
    std::vector<double> sum(grid.cell_tokens());
    double bias_sum = 0;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t t = 0; t < grid.cell_tokens(); ++t) {
            sum[t] += double(*dweights.at(i * grid.cell_tokens() + t));
        }
        bias_sum += dbiases[i];
    }
    std::copy(sum.begin(), sum.end(), to.dweight.mutable_data_ptr<T>());
    *to.dweight_bias.mutable_data_ptr<T>() = T(bias_sum);
}

// Refuses what would read out of bounds.
void check(const Tensor& q, const Tensor& v, const Tensor& weight, const Tensor& weight_bias,
           const Tensor& table, int64_t height, int64_t width, int64_t base_height,
           int64_t base_width, int64_t heads) {
    check_floating_cpu(q, "q", 4);
    check_floating_cpu(v, "v", 4);
    check_same(v, "v", q, "q");
    check_floating_cpu(weight, "weight", 2);
    check_floating_cpu(weight_bias, "weight_bias", 1);
    check_floating_cpu(table, "bias_table", 2);
    const ScalarType type = q.scalar_type();
    STD_TORCH_CHECK(weight.scalar_type() == type && weight_bias.scalar_type() == type &&
                        table.scalar_type() == type,
                    "weight, weight_bias and bias_table must have the type of q.");
    STD_TORCH_CHECK(height > 0 && width > 0 && base_height > 0 && base_width > 0 && heads > 0,
                    "window sizes, base sizes and num_heads must be positive.");
    STD_TORCH_CHECK(q.size(1) % height == 0 && q.size(2) % width == 0,
                    "the map must be a multiple of the window, ", height, " x ", width, ".");
    STD_TORCH_CHECK(height % base_height == 0 && width % base_width == 0,
                    "the window must be a multiple of the base, ", base_height, " x ", base_width,
                    ".");
    STD_TORCH_CHECK(q.size(3) % heads == 0, "num_heads must divide C.");
    const int64_t tokens = height / base_height * (width / base_width);
    STD_TORCH_CHECK(weight.size(0) == 1 && weight.size(1) == tokens, "weight must be (1, ", tokens,
                    ").");
    STD_TORCH_CHECK(weight_bias.size(0) == 1, "weight_bias must be (1,).");
    const int64_t offsets = (2 * height - 1) * (2 * width - 1);
    STD_TORCH_CHECK(table.size(0) == offsets && table.size(1) == heads, "bias_table must be (",
                    offsets, ", ", heads, ").");
}

Tensor dense_like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

}  // namespace

Tensor spatial_correlation(const Tensor& q, const Tensor& v, const Tensor& weight,
                           const Tensor& weight_bias, const Tensor& bias_table,
                           int64_t window_height, int64_t window_width, int64_t base_height,
                           int64_t base_width, int64_t num_heads) {
    check(q, v, weight, weight_bias, bias_table, window_height, window_width, base_height,
          base_width, num_heads);
    const Tensor out = dense_like(q);
    if (out.numel() == 0) {
        return out;
    }
    const bool wide = q.scalar_type() == ScalarType::Double;
    const Grid grid(q, window_height, window_width, base_height, base_width, num_heads,
                    wide ? kernels<double>().lanes : kernels<float>().lanes);
    (wide ? forward<double> : forward<float>)(grid, dense_channels(q), dense_channels(v),
                                              dense_channels(weight), weight_bias, bias_table, out);
    return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_correlation_backward(
    const Tensor& grad, const Tensor& q, const Tensor& v, const Tensor& weight,
    const Tensor& weight_bias, const Tensor& bias_table, int64_t window_height,
    int64_t window_width, int64_t base_height, int64_t base_width, int64_t num_heads) {
    check(q, v, weight, weight_bias, bias_table, window_height, window_width, base_height,
          base_width, num_heads);
    check_floating_cpu(grad, "grad", 4);
    check_same(grad, "grad", q, "q");
    const Gradients to{dense_like(q), dense_like(v), dense_like(weight), dense_like(weight_bias),
                       dense_like(bias_table)};
    if (grad.numel() == 0) {
        return {to.dq, to.dv, torch::stable::fill_(to.dweight, 0),
                torch::stable::fill_(to.dweight_bias, 0), torch::stable::fill_(to.dtable, 0)};
    }
    const bool wide = q.scalar_type() == ScalarType::Double;
    const Grid grid(q, window_height, window_width, base_height, base_width, num_heads,
                    wide ? kernels<double>().lanes : kernels<float>().lanes);
    (wide ? backward<double> : backward<float>)(grid, dense_channels(grad), dense_channels(q),
                                                dense_channels(v), dense_channels(weight),
                                                weight_bias, bias_table, to);
    return {to.dq, to.dv, to.dweight, to.dweight_bias, to.dtable};
}

}  // namespace c2d
