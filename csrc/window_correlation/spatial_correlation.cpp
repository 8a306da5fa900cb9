// Spatial correlation on the CPU, host side: windows, the layouts of the bias, threads and scratch
// memory. The arithmetic on the map and its costs are in spatial_cpu.cpp.
//
// Where there are many windows, each is finished by one thread while it is in cache; where there
// are few, every pass over some windows is parallel over their strips (some tokens of a window),
// rows of cells or heads. All of these and the order of every sum depend on the shapes alone, and
// the two ways do the same: results are bitwise the same for any number of threads.
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

constexpr int64_t kStripTokens = 512;    // tokens of a strip, about
constexpr int64_t kCachedTokens = 1024;  // tokens of windows that a thread handles together
constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread
constexpr int64_t kManyWindows = 16;              // enough to give each thread whole windows
constexpr int64_t kGroups = 32;                   // groups of windows in backward, at most
constexpr int64_t kManyGroups = 4;                // enough to give each thread whole groups
constexpr int64_t kSumWindows = 8;  // windows whose bias gradients are summed in float32

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

// Scratch memory of kernels: one thread's, or none where each thread shall have its own.
template <class T>
struct Scratch {
    int64_t elements;
    Aligned<T>* mine;

    // Runs task(i, scratch) for each i < count: here, or in parallel where there is no scratch yet.
    template <class Task>
    void for_each(int64_t count, int64_t each, const Task& task) const {
        if (mine != nullptr) {
            for (int64_t i = 0; i < count; ++i) {
                task(i, mine->data());
            }
            return;
        }
        const int64_t grain = std::max<int64_t>(1, kSmallTask / std::max<int64_t>(1, each));
        torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(elements);
            for (int64_t i = begin; i < end; ++i) {
                task(i, scratch.data());
            }
        });
    }
};

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
    // Multiply-adds for each number of the map: cells of a window.
    int64_t work() const { return tokens * channels() * cells; }
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

// The table averaged over cells, [head][pooled_height][pooled_width].
template <class T>
std::vector<T> pooled(const Grid& grid, const Tensor& table) {
    std::vector<T> all(grid.heads * grid.pooled());
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
            T* to = all.data() + head * grid.pooled() + y * grid.pooled_width;
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
    return all;
}

// The bias for apply. Where a block of tokens never leaves its row, the pooled table itself will
// do. Otherwise each column of cells gets its own copy, cut to the window's width, so that the
// tokens of a window follow each other.
template <class T>
class BiasOfTokens {
  public:
    BiasOfTokens(const Grid& grid, const std::vector<T>& pooled)
        : direct_(grid.width % kernels<T>().block == 0),
          memory_(grid.heads * head_elements(grid) + kernels<T>().block) {
        const int64_t down = -grid.cell_height;
        T* to = memory_.data();
        if (direct_) {
            std::copy(pooled.begin(), pooled.end(), to);
            bias_ = {to + (grid.height - grid.cell_height) * grid.pooled_width + grid.width -
                         grid.cell_width,
                     grid.pooled(), grid.pooled_width, down * grid.pooled_width, -grid.cell_width};
            return;
        }
        const int64_t copy = grid.pooled_height * grid.width;
        for_each(grid.heads, grid.base_width * copy, [&](int64_t head) {
            for (int64_t cell = 0; cell < grid.base_width; ++cell) {
                for (int64_t y = 0; y < grid.pooled_height; ++y) {
                    const T* row = pooled.data() + head * grid.pooled() + y * grid.pooled_width +
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

// v reduced to cells in some windows: p [window][cell][channel], p turned, and p^T p / d.
template <class T>
struct Cells {
    Aligned<T> p, turned, gram;

    Cells(const Grid& grid, int64_t windows)
        : p(windows * grid.cells_of_window()),
          turned(windows * grid.turned_of_window()),
          gram(windows * grid.gram_of_window()) {}

    void make(const Grid& grid, const Map<const T>& v, int64_t first, int64_t count,
              const T* weight, T bias, const Scratch<T>& scratch) {
        const int64_t row = grid.base_width * grid.channels();
        // The first rows of cells of all windows, then the second: long rows of the map.
        scratch.for_each(count * grid.base_height, row * grid.cell_tokens(), [&](int64_t i, T*) {
            const int64_t window = i % count, down = i / count;
            kernels<T>().reduce(grid, v.strip(grid, first + window, down), weight, bias,
                                p.data() + (window * grid.base_height + down) * row);
        });
        scratch.for_each(count, grid.cells_of_window() * grid.head_dim, [&](int64_t i, T*) {
            kernels<T>().gram(grid, p.data() + i * grid.cells_of_window(),
                              turned.data() + i * grid.turned_of_window(),
                              gram.data() + i * grid.gram_of_window());
        });
    }
};

template <class T>
void forward(const Grid& grid, const Tensor& q_map, const Tensor& v_map, const Tensor& weight,
             const Tensor& weight_bias, const Tensor& table, const Tensor& out_map) {
    const Map<const T> q = input<T>(grid, q_map), v = input<T>(grid, v_map);
    const Map<T> out = output<T>(grid, out_map);
    const T* weights = weight.const_data_ptr<T>();
    const T shift = *weight_bias.const_data_ptr<T>();
    const BiasOfTokens<T> bias(grid, pooled<T>(grid, table));
    const auto run = [&](int64_t first, int64_t count, Cells<T>& cells, const Scratch<T>& scratch) {
        cells.make(grid, v, first, count, weights, shift, scratch);
        const int64_t work = grid.strip * grid.cells_of_window();
        scratch.for_each(count * grid.strips, work, [&](int64_t i, T* memory) {
            const int64_t window = i / grid.strips;
            kernels<T>().apply(grid, i % grid.strips * grid.strip, grid.strip_tokens(i),
                               q.tokens(grid, first + window),
                               cells.gram.data() + window * grid.gram_of_window(),
                               cells.turned.data() + window * grid.turned_of_window(), bias.view(),
                               out.tokens(grid, first + window), memory);
        });
    };
    const int64_t elements = kernels<T>().scratch(grid);
    if (grid.windows < kManyWindows) {
        Cells<T> cells(grid, grid.windows);
        run(0, grid.windows, cells, {elements, nullptr});
        return;
    }
    const int64_t grain = std::max<int64_t>(1, kSmallTask / grid.work());
    torch::stable::parallel_for(0, grid.windows, grain, [&](int64_t begin, int64_t end) {
        Aligned<T> memory(elements);
        const int64_t step = std::max<int64_t>(1, kCachedTokens / grid.tokens);
        Cells<T> cells(grid, step);
        for (int64_t first = begin; first < end; first += step) {
            run(first, std::min(step, end - first), cells, {elements, &memory});
        }
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

struct Gradients {
    Tensor dq, dv, dweight, dweight_bias, dtable;
};

// What backward keeps of some windows of a group, and of the group.
template <class T>
struct Work {
    Cells<T> cells;  // p is dp in the end
    Aligned<T> d_turned, dgram, dweight;
    Aligned<T> dbias;  // [head] in the layout of CellBias, of up to kSumWindows windows

    Work(const Grid& grid, const CellLayout& layout, int64_t windows)
        : cells(grid, windows),
          d_turned(windows * grid.turned_of_window()),
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
        if (groups < kManyGroups) {
            Work<T> work(grid, layout, group);
            for (int64_t g = 0; g < groups; ++g) {
                run_group(g, group, work, {elements, nullptr});
            }
            return;
        }
        torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
            Aligned<T> memory(elements);
            const int64_t step = std::clamp<int64_t>(kCachedTokens / grid.tokens, 1, kSumWindows);
            Work<T> work(grid, layout, step);
            for (int64_t g = begin; g < end; ++g) {
                run_group(g, step, work, {elements, &memory});
            }
        });
    }

    // A group of windows, `step` windows at a time.
    void run_group(int64_t g, int64_t step, Work<T>& work, const Scratch<T>& scratch) {
        const int64_t start = g * group, stop = std::min(start + group, grid.windows);
        int64_t summed = 0;
        for (int64_t first = start; first < stop; first += step) {
            const int64_t count = std::min(step, stop - first);
            work.cells.make(grid, v, first, count, weight, weight_bias, scratch);
            through_tokens(first, count, work, scratch);
            through_bias(first, count, work, scratch);
            summed += count;
            if (summed + step > kSumWindows || first + count == stop) {
                collect_bias(g, work, scratch);
                summed = 0;
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
                    window * grid.turned_of_window() + head * grid.head_dim * grid.padded;
                kernels<T>().backward_bias(grid, strip, work.cells.turned.data() + at,
                                           {bias.data() + place, layout.row, layout.column},
                                           work.d_turned.data() + at,
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
                grid, work.cells.turned.data() + window * grid.turned_of_window(), dgram,
                work.d_turned.data() + window * grid.turned_of_window(),
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
            kernels<T>().backward_reduce(grid, v.strip(grid, first + window, down), weight,
                                         dp + (window * grid.base_height + down) * row,
                                         dv.strip(grid, first + window, down),
                                         work.dweight.data() + i * tokens);
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
