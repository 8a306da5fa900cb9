// Spatial correlation on the CPU, what forward and backward share of the host side: windows,
// threads and the averaged bias table. The arithmetic on the map and its costs are in
// kernel.cpp.
//
// Where there are many windows, each is finished by one thread while it is in cache; where there
// are few, every pass over some windows is parallel over their strips (some tokens of a window),
// rows of cells or heads. All of these and the order of every sum depend on the shapes alone, and
// the two ways do the same: results are bitwise the same for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../common/aligned.h"
#include "../common/checks.h"
#include "../common/isa.h"
#include "spatial_correlation.h"

namespace c2d::spatial {

constexpr int64_t kStripTokens = 512;             // tokens of a strip, about
constexpr int64_t kCachedTokens = 1024;           // tokens that a thread handles together
constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread

template <class T>
const SpatialKernels<T>& kernels() {
    if constexpr (std::is_same_v<T, double>) {
        return C2D_FOR_ISA(spatial_float64);
    } else {
        return C2D_FOR_ISA(spatial_float32);
    }
}

// Whether so many pieces of a map, each done by one thread from beginning to end, keep all threads
// about equally busy.
inline bool worth_sharing(int64_t pieces) {
    const int64_t threads = torch::stable::get_num_threads();
    return threads == 1 || pieces >= 2 * threads;
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
    int64_t transposed_of_window() const { return padded * channels(); }
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

// v reduced to cells in some windows: p [window][cell][channel], p^T, and p^T p / d.
template <class T>
struct Cells {
    Aligned<T> p, transposed, gram;

    Cells(const Grid& grid, int64_t windows)
        : p(windows * grid.cells_of_window()),
          transposed(windows * grid.transposed_of_window()),
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
                              transposed.data() + i * grid.transposed_of_window(),
                              gram.data() + i * grid.gram_of_window());
        });
    }
};

// Refuses what would read out of bounds.
void check(const Tensor& q, const Tensor& v, const Tensor& weight, const Tensor& weight_bias,
           const Tensor& table, int64_t height, int64_t width, int64_t base_height,
           int64_t base_width, int64_t heads);

inline Tensor dense_like(const Tensor& tensor) {
    return torch::stable::new_empty(tensor, tensor.sizes());
}

}  // namespace c2d::spatial
