// Attention in windows on the CPU, host side: which token is where, threads and scratch memory. The
// arithmetic is in cpu.cpp.
//
// Token (y, x) of window (Y, X) of the map rolled by `shift` is token ((Y w + y + shift) mod H,
// ...) of the map: windows are read and written where they lie. Swin's key is a token of [q | k |
// v]; SRFormer's is a cell of 2x2 tokens of [k | v], C/4 channels of each. A forward task is a
// window. A backward task is a group of windows for some heads, which sums dS of each pair of
// tokens over the group and then over the pairs that share an entry of the bias table. Groups
// depend on the shapes alone and their sums are added in order: results are bitwise the same for
// any number of threads.
#include "window_attention.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../kernels.h"

namespace c2d {
namespace {

constexpr int64_t kGroup = 32;                    // windows of a backward task, at most
constexpr int64_t kPairs = int64_t{1} << 18;      // pairs of tokens whose dS a task sums, about
constexpr int64_t kSmallTask = int64_t{1} << 20;  // multiply-adds not worth another thread

template <class T>
const AttentionKernels<T>& kernels();
template <>
const AttentionKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(attention_float32);
}
template <>
const AttentionKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(attention_float64);
}

// The windows of a call, and the sizes that follow from its arguments.
struct Grid {
    int64_t height, width, channels, window, heads, shift;
    int64_t cell;  // tokens of a key along an axis: 1, or 2
    int64_t down, across, windows;
    int64_t queries, keys, side, head_dim;  // side of a head's bias table
    std::vector<Run> runs;                  // of head 0, 1, ...
    std::vector<int64_t> first_run;

    Grid(const Tensor& map, int64_t map_channels, int64_t map_cell, int64_t window_size,
         int64_t num_heads, int64_t map_shift)
        : height(map.size(1)),
          width(map.size(2)),
          channels(map_channels),
          window(window_size),
          heads(num_heads),
          shift(map_shift),
          cell(map_cell),
          down(height / window),
          across(width / window),
          windows(map.size(0) * down * across),
          queries(window * window),
          keys(queries / (cell * cell)),
          side(2 * (window / cell) - 1),
          head_dim(channels / heads) {
        const int64_t each = channels / (cell * cell);  // channels of a key in one token
        for (int64_t head = 0; head < heads; ++head) {
            first_run.push_back(int64_t(runs.size()));
            for (int64_t done = 0; done < head_dim;) {
                const int64_t channel = head * head_dim + done;
                const int64_t count = std::min(head_dim - done, each - channel % each);
                runs.push_back({channel / each, channel % each, done, count});
                done += count;
            }
        }
        first_run.push_back(int64_t(runs.size()));
    }

    // Row of the bias table for query n and key m.
    int64_t table_row(int64_t n, int64_t m) const {
        const int64_t across_keys = window / cell;
        const int64_t dy = n / window / cell - m / across_keys + across_keys - 1;
        const int64_t dx = n % window / cell - m % across_keys + across_keys - 1;
        return dy * side + dx;
    }

    // Where token (y, x) of a window lies in a map.
    int64_t token(int64_t index, int64_t y, int64_t x, const Tensor& map) const {
        const int64_t row = (index / across % down * window + y + shift) % height;
        const int64_t column = (index % across * window + x + shift) % width;
        return index / (across * down) * map.stride(0) + row * map.stride(1) +
               column * map.stride(2);
    }

    void query_tokens(int64_t index, const Tensor& map, std::vector<int64_t>& to) const {
        for (int64_t n = 0; n < queries; ++n) {
            to[n] = token(index, n / window, n % window, map);
        }
    }

    void key_tokens(int64_t index, const Tensor& map, std::vector<int64_t>& to) const {
        const int64_t across_keys = window / cell, tokens = cell * cell;
        for (int64_t m = 0; m < keys; ++m) {
            for (int64_t t = 0; t < tokens; ++t) {
                to[m * tokens + t] = token(index, m / across_keys * cell + t / cell,
                                           m % across_keys * cell + t % cell, map);
            }
        }
    }

    // The mask separates tokens of some window only in the last row or column of windows.
    bool masked(int64_t index) const {
        return shift > 0 && (index / across % down == down - 1 || index % across == across - 1);
    }

    // Which of the nine regions of the rolled map the token is from.
    int64_t region(int64_t index, int64_t y, int64_t x) const {
        y += index / across % down * window;
        x += index % across * window;
        const int64_t row = (y >= height - window) + (y >= height - shift);
        const int64_t column = (x >= width - window) + (x >= width - shift);
        return row * 3 + column;
    }
};

// Where q, k and v begin, and the maps they are in.
template <class T>
struct Inputs {
    const Tensor &q_map, &kv_map;
    const T *q, *k, *v;

    Inputs(const Grid& grid, const Tensor& q_tensor, const std::optional<Tensor>& kv_tensor)
        : q_map(q_tensor), kv_map(kv_tensor ? *kv_tensor : q_tensor) {
        q = q_map.const_data_ptr<T>();
        k = kv_tensor ? kv_map.const_data_ptr<T>() : q + grid.channels;
        v = k + grid.channels / (grid.cell * grid.cell);
    }
};

template <class T>
AttentionSizes<T> sizes_of(const Grid& grid, double scale) {
    const int64_t lanes = kernels<T>().lanes;
    const int64_t block = grid.queries > lanes ? 2 * lanes : lanes;
    return {grid.queries,  grid.keys,
            grid.head_dim, grid.cell * grid.cell,
            block,         (grid.queries + block - 1) / block,
            T(scale)};
}

// Memory that begins at a vector's boundary.
template <class T>
class Aligned {
  public:
    explicit Aligned(int64_t elements) : memory_(elements + kBytes / sizeof(T)) {
        const auto address = reinterpret_cast<uintptr_t>(memory_.data());
        data_ = memory_.data() + (kBytes - address % kBytes) % kBytes / sizeof(T);
    }
    T* data() { return data_; }

  private:
    static constexpr uintptr_t kBytes = 64;
    std::vector<T> memory_;
    T* data_;
};

// The table for every query and key of a window: [heads][blocks][keys][block], as kernels read it.
template <class T>
void expand_bias(const Grid& grid, const AttentionSizes<T>& sizes, const Tensor& table, T* dense) {
    const T* from = table.const_data_ptr<T>();
    torch::stable::parallel_for(
        0, grid.heads * sizes.blocks, std::max<int64_t>(1, kSmallTask / 64 / sizes.keys),
        [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t head = task / sizes.blocks, first = task % sizes.blocks * sizes.block;
                T* to = dense + task * sizes.keys * sizes.block;
                for (int64_t m = 0; m < sizes.keys; ++m) {
                    for (int64_t n = first; n < first + sizes.block; ++n) {
                        *to++ = n < sizes.queries ? from[grid.table_row(n, m) * table.stride(0) +
                                                         head * table.stride(1)]
                                                  : T(0);
                    }
                }
            }
        });
}

// What a thread keeps of one window: where its tokens are and their regions.
template <class T>
struct Window {
    std::vector<int64_t> q_token, key_token;
    std::vector<T> query_region, key_region;
    bool masked = false;

    Window(const Grid& grid, const AttentionSizes<T>& sizes)
        : q_token(grid.queries),
          key_token(grid.queries),
          query_region(sizes.block * sizes.blocks),
          key_region(grid.keys) {}

    void move_to(const Grid& grid, int64_t index, const Inputs<T>& inputs) {
        grid.query_tokens(index, inputs.q_map, q_token);
        grid.key_tokens(index, inputs.kv_map, key_token);
        masked = grid.masked(index);
        if (!masked) {
            return;
        }
        for (int64_t n = 0; n < grid.queries; ++n) {
            query_region[n] = T(grid.region(index, n / grid.window, n % grid.window));
        }
        const int64_t across_keys = grid.window / grid.cell;
        for (int64_t m = 0; m < grid.keys; ++m) {
            key_region[m] =
                T(grid.region(index, m / across_keys * grid.cell, m % across_keys * grid.cell));
        }
    }

    AttentionHead<T> head(const Grid& grid, const Inputs<T>& inputs, int64_t head,
                          const T* bias) const {
        return {inputs.q + head * grid.head_dim,
                inputs.k,
                inputs.v,
                q_token.data(),
                key_token.data(),
                grid.runs.data() + grid.first_run[head],
                grid.first_run[head + 1] - grid.first_run[head],
                bias,
                masked ? query_region.data() : nullptr,
                masked ? key_region.data() : nullptr};
    }
};

template <class T>
void forward(const Grid& grid, double scale, const Tensor& q, const std::optional<Tensor>& kv,
             const Tensor& table, const Tensor& out_map) {
    const auto& kernel = kernels<T>();
    const AttentionSizes<T> sizes = sizes_of<T>(grid, scale);
    const Inputs<T> inputs(grid, q, kv);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    Aligned<T> bias(grid.heads * pairs);
    expand_bias(grid, sizes, table, bias.data());
    T* out = out_map.mutable_data_ptr<T>();
    const int64_t work = 2 * pairs * grid.channels;
    torch::stable::parallel_for(
        0, grid.windows, std::max<int64_t>(1, kSmallTask / work), [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(kernel.forward_scratch(sizes));
            Window<T> window(grid, sizes);
            std::vector<int64_t> out_token(grid.queries);
            for (int64_t index = begin; index < end; ++index) {
                window.move_to(grid, index, inputs);
                grid.query_tokens(index, out_map, out_token);
                for (int64_t head = 0; head < grid.heads; ++head) {
                    kernel.forward(sizes,
                                   window.head(grid, inputs, head, bias.data() + head * pairs),
                                   out + head * grid.head_dim, out_token.data(), scratch.data());
                }
            }
        });
}

template <class T>
void backward(const Grid& grid, double scale, const Tensor& grad, const Tensor& q,
              const std::optional<Tensor>& kv, const Tensor& table, const Tensor& dq_map,
              const Tensor& dkv_map, const Tensor& dtable) {
    const auto& kernel = kernels<T>();
    const AttentionSizes<T> sizes = sizes_of<T>(grid, scale);
    const Inputs<T> inputs(grid, q, kv);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    const int64_t entries = grid.side * grid.side;
    Aligned<T> bias(grid.heads * pairs);
    expand_bias(grid, sizes, table, bias.data());
    T* dq = dq_map.mutable_data_ptr<T>();
    T* dk = kv ? dkv_map.mutable_data_ptr<T>() : dq + grid.channels;
    T* dv = dk + grid.channels / (grid.cell * grid.cell);

    const int64_t group = std::clamp<int64_t>(grid.windows / 16, 1, kGroup);
    const int64_t groups = (grid.windows + group - 1) / group;
    const int64_t some = std::clamp<int64_t>(kPairs / pairs, 1, grid.heads);  // heads of a task
    const int64_t parts = (grid.heads + some - 1) / some;
    std::vector<double> partials(groups * grid.heads * entries);  // [group][head][entry]
    torch::stable::parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.backward_scratch(sizes)), sum(some * pairs);
        Window<T> window(grid, sizes);
        std::vector<int64_t> grad_token(grid.queries), dq_token(grid.queries),
            dk_token(grid.queries);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t first = task % parts * some, last = std::min(first + some, grid.heads);
            const int64_t start = task / parts * group;
            std::fill_n(sum.data(), some * pairs, T(0));
            for (int64_t index = start; index < std::min(start + group, grid.windows); ++index) {
                window.move_to(grid, index, inputs);
                grid.query_tokens(index, grad, grad_token);
                grid.query_tokens(index, dq_map, dq_token);
                grid.key_tokens(index, kv ? dkv_map : dq_map, dk_token);
                for (int64_t head = first; head < last; ++head) {
                    const int64_t at = head * grid.head_dim;
                    kernel.backward(
                        sizes, window.head(grid, inputs, head, bias.data() + head * pairs),
                        {grad.const_data_ptr<T>() + at, grad_token.data(), dq + at, dk, dv,
                         dq_token.data(), dk_token.data(), sum.data() + (head - first) * pairs},
                        scratch.data());
                }
            }
            for (int64_t head = first; head < last; ++head) {
                double* to = partials.data() + (task / parts * grid.heads + head) * entries;
                const T* from = sum.data() + (head - first) * pairs;
                for (int64_t block = 0; block < sizes.blocks; ++block) {
                    for (int64_t m = 0; m < sizes.keys; ++m, from += sizes.block) {
                        const int64_t n = block * sizes.block;
                        const int64_t count = std::min(sizes.block, sizes.queries - n);
                        for (int64_t i = 0; i < count; ++i) {
                            to[grid.table_row(n + i, m)] += double(from[i]);
                        }
                    }
                }
            }
        }
    });
    T* to = dtable.mutable_data_ptr<T>();
    for (int64_t head = 0; head < grid.heads; ++head) {
        for (int64_t entry = 0; entry < entries; ++entry) {
            double sum = 0;
            for (int64_t g = 0; g < groups; ++g) {
                sum += partials[(g * grid.heads + head) * entries + entry];
            }
            to[entry * grid.heads + head] = T(sum);
        }
    }
}

// Checks the arguments and works out the grid they describe.
Grid checked(const Tensor& q, const std::optional<Tensor>& kv, const Tensor& table,
             int64_t window_size, int64_t num_heads, int64_t shift) {
    check_floating_cpu(q, "q", 4);
    check_floating_cpu(table, "bias_table", 2);
    STD_TORCH_CHECK(table.scalar_type() == q.scalar_type(), "bias_table must have the type of q.");
    STD_TORCH_CHECK(window_size > 0 && num_heads > 0,
                    "window_size and num_heads must be positive.");
    STD_TORCH_CHECK(0 <= shift && shift < window_size, "shift must be from 0 to window_size - 1.");
    STD_TORCH_CHECK(q.size(1) % window_size == 0 && q.size(2) % window_size == 0,
                    "the map must be a multiple of window_size, ", window_size, ".");
    const int64_t cell = kv ? 2 : 1;
    int64_t channels = q.size(3);
    if (kv) {
        check_floating_cpu(*kv, "kv", 4);
        STD_TORCH_CHECK(kv->scalar_type() == q.scalar_type(), "kv must have the type of q.");
        STD_TORCH_CHECK(window_size % 2 == 0 && shift % 2 == 0,
                        "window_size and shift must be even with kv.");
        STD_TORCH_CHECK(channels % 4 == 0 && kv->size(0) == q.size(0) && kv->size(1) == q.size(1) &&
                            kv->size(2) == q.size(2) && kv->size(3) == channels / 2,
                        "kv must be (B, H, W, C/2) beside q (B, H, W, C), C a multiple of 4.");
    } else {
        STD_TORCH_CHECK(channels % 3 == 0, "q must have 3C channels without kv.");
        channels /= 3;
    }
    STD_TORCH_CHECK(channels > 0 && channels % num_heads == 0, "num_heads must divide C.");
    const Grid grid(q, channels, cell, window_size, num_heads, shift);
    STD_TORCH_CHECK(table.size(0) == grid.side * grid.side && table.size(1) == num_heads,
                    "bias_table must be (", grid.side * grid.side, ", ", num_heads, ").");
    return grid;
}

std::optional<Tensor> dense(const std::optional<Tensor>& kv) {
    return kv ? std::optional<Tensor>(dense_channels(*kv)) : std::nullopt;
}

}  // namespace

Tensor window_attention(const Tensor& q, std::optional<Tensor> kv, const Tensor& bias_table,
                        int64_t window_size, int64_t num_heads, int64_t shift, double scale) {
    const Grid grid = checked(q, kv, bias_table, window_size, num_heads, shift);
    const Tensor out =
        torch::stable::new_empty(q, {q.size(0), grid.height, grid.width, grid.channels});
    if (out.numel() == 0) {
        return out;
    }
    if (q.scalar_type() == ScalarType::Double) {
        forward<double>(grid, scale, dense_channels(q), dense(kv), bias_table, out);
    } else {
        forward<float>(grid, scale, dense_channels(q), dense(kv), bias_table, out);
    }
    return out;
}

std::tuple<Tensor, Tensor, Tensor> window_attention_backward(const Tensor& grad, const Tensor& q,
                                                             std::optional<Tensor> kv,
                                                             const Tensor& bias_table,
                                                             int64_t window_size, int64_t num_heads,
                                                             int64_t shift, double scale) {
    const Grid grid = checked(q, kv, bias_table, window_size, num_heads, shift);
    check_floating_cpu(grad, "grad", 4);
    STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && grad.size(0) == q.size(0) &&
                        grad.size(1) == grid.height && grad.size(2) == grid.width &&
                        grad.size(3) == grid.channels,
                    "grad must be (B, H, W, C), in the type of q.");
    const Tensor dq = torch::stable::new_empty(q, q.sizes());
    const Tensor dkv =
        kv ? torch::stable::new_empty(*kv, kv->sizes()) : torch::stable::new_empty(q, {0});
    const Tensor dtable = torch::stable::new_empty(bias_table, bias_table.sizes());
    if (grad.numel() == 0) {
        return {dq, dkv, torch::stable::fill_(dtable, 0)};
    }
    if (q.scalar_type() == ScalarType::Double) {
        backward<double>(grid, scale, dense_channels(grad), dense_channels(q), dense(kv),
                         bias_table, dq, dkv, dtable);
    } else {
        backward<float>(grid, scale, dense_channels(grad), dense_channels(q), dense(kv), bias_table,
                        dq, dkv, dtable);
    }
    return {dq, dkv, dtable};
}

}  // namespace c2d
