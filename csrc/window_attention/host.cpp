// Attention in windows on the CPU, host side: which token is where, threads and scratch memory. The
// arithmetic is in kernel.cpp.
//
// Token (y, x) of window (Y, X) of the map rolled by `shift` is token ((Y w + y + shift) mod H,
// ...) of the map: windows are read and written where they lie. Swin's key is a token of [q | k |
// v]; SRFormer's is a cell of 2x2 tokens of [k | v], C/4 channels of each. A forward task is a
// window. A backward task is a group of windows for some heads, which sums dS of each pair of
// tokens over the group and then over the pairs that share an entry of the bias table. Groups
// depend on the shapes alone and their sums are added in order: results are bitwise the same for
// any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "windows.h"

namespace c2d {
namespace {

constexpr int64_t kGroup = 32;                // windows of a backward task, at most
constexpr int64_t kPairs = int64_t{1} << 18;  // pairs of tokens whose dS a task sums, about

// Where q, k and v begin, and the maps they are in.
template <class T>
struct Inputs {
    const Tensor &q_map, &kv_map;
    const T *q, *k, *v;

    Inputs(const WindowGrid& grid, const Tensor& q_tensor, const std::optional<Tensor>& kv_tensor)
        : q_map(q_tensor), kv_map(kv_tensor ? *kv_tensor : q_tensor) {
        q = q_map.const_data_ptr<T>();
        k = kv_tensor ? kv_map.const_data_ptr<T>() : q + grid.channels;
        v = k + grid.channels / (grid.cell * grid.cell);
    }
};

template <class T>
AttentionSizes<T> sizes_of(const WindowGrid& grid, double scale) {
    return attention_sizes<T>(grid.queries, grid.keys, grid.head_dim, grid.cell * grid.cell, scale);
}

// What a thread keeps of one window: where its tokens are and their regions.
template <class T>
struct Window {
    std::vector<int64_t> q_token, key_token;
    std::vector<T> query_region, key_region;
    bool masked = false;

    Window(const WindowGrid& grid, const AttentionSizes<T>& sizes)
        : q_token(grid.queries),
          key_token(grid.queries),
          query_region(sizes.block * sizes.blocks),
          key_region(grid.keys) {}

    void move_to(const WindowGrid& grid, int64_t index, const Inputs<T>& inputs) {
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

    AttentionHead<T> head(const WindowGrid& grid, const Inputs<T>& inputs, int64_t head,
                          const T* bias, const T* cosines) const {
        return {inputs.q + head * grid.head_dim,
                inputs.k,
                inputs.v,
                q_token.data(),
                key_token.data(),
                grid.runs.data() + grid.first_run[head],
                grid.first_run[head + 1] - grid.first_run[head],
                bias,
                masked ? query_region.data() : nullptr,
                masked ? key_region.data() : nullptr,
                cosines == nullptr ? nullptr : cosines + head};
    }
};

template <class T>
void forward(const WindowGrid& grid, double scale, const Tensor& q, const std::optional<Tensor>& kv,
             const Tensor& table, const T* cosines, const Tensor& out_map) {
    const auto& kernel = attention_kernels<T>();
    const AttentionSizes<T> sizes = sizes_of<T>(grid, scale);
    const Inputs<T> inputs(grid, q, kv);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    Aligned<T> bias(grid.heads * pairs);
    expand_bias(grid, queries_of(sizes), sizes.block, table, bias.data());
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
                    kernel.forward(
                        sizes, window.head(grid, inputs, head, bias.data() + head * pairs, cosines),
                        out + head * grid.head_dim, out_token.data(), scratch.data());
                }
            }
        });
}

template <class T>
void backward(const WindowGrid& grid, double scale, const Tensor& grad, const Tensor& q,
              const std::optional<Tensor>& kv, const Tensor& table, const T* cosines,
              const Tensor& dq_map, const Tensor& dkv_map, const Tensor& dtable, T* dcosines) {
    const auto& kernel = attention_kernels<T>();
    const AttentionSizes<T> sizes = sizes_of<T>(grid, scale);
    const Inputs<T> inputs(grid, q, kv);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    const int64_t entries = grid.side * grid.side;
    Aligned<T> bias(grid.heads * pairs);
    expand_bias(grid, queries_of(sizes), sizes.block, table, bias.data());
    T* dq = dq_map.mutable_data_ptr<T>();
    T* dk = kv ? dkv_map.mutable_data_ptr<T>() : dq + grid.channels;
    T* dv = dk + grid.channels / (grid.cell * grid.cell);

    const int64_t group = std::clamp<int64_t>(grid.windows / 16, 1, kGroup);
    const int64_t groups = (grid.windows + group - 1) / group;
    const int64_t some = std::clamp<int64_t>(kPairs / pairs, 1, grid.heads);  // heads of a task
    const int64_t parts = (grid.heads + some - 1) / some;
    std::vector<double> partials(groups * grid.heads * entries);  // [group][head][entry]
    std::vector<double> cosine_partials(groups * grid.heads);
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
                    T dcosine = 0;
                    kernel.backward(
                        sizes, window.head(grid, inputs, head, bias.data() + head * pairs, cosines),
                        {grad.const_data_ptr<T>() + at, grad_token.data(), dq + at, dk, dv,
                         dq_token.data(), dk_token.data(), sum.data() + (head - first) * pairs,
                         &dcosine},
                        scratch.data());
                    cosine_partials[task / parts * grid.heads + head] += double(dcosine);
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
    for (int64_t head = 0; dcosines != nullptr && head < grid.heads; ++head) {
        double sum = 0;
        for (int64_t g = 0; g < groups; ++g) {
            sum += cosine_partials[g * grid.heads + head];
        }
        dcosines[head] = T(sum);
    }
}

// Checks the arguments and works out the grid they describe.
WindowGrid checked(const Tensor& q, const std::optional<Tensor>& kv, const Tensor& table,
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
    const WindowGrid grid(q, channels, cell, window_size, num_heads, shift);
    STD_TORCH_CHECK(table.size(0) == grid.side * grid.side && table.size(1) == num_heads,
                    "bias_table must be (", grid.side * grid.side, ", ", num_heads, ").");
    return grid;
}

std::optional<Tensor> dense(const std::optional<Tensor>& kv) {
    return kv ? std::optional<Tensor>(dense_channels(*kv)) : std::nullopt;
}

// softmax(scale q k^T + bias + mask) v in each window, with roll and mask by `shift`: Swin's
// without kv and q (B, H, W, 3C) = [q | k | v]; SRFormer's with q (B, H, W, C) and kv (B, H, W,
// C/2). All of one type, float32 or float64. Returns (B, H, W, C).
Tensor window_attention(const Tensor& q, std::optional<Tensor> kv, const Tensor& bias_table,
                        int64_t window_size, int64_t num_heads, int64_t shift, double scale) {
    const WindowGrid grid = checked(q, kv, bias_table, window_size, num_heads, shift);
    const Tensor out =
        torch::stable::new_empty(q, {q.size(0), grid.height, grid.width, grid.channels});
    if (out.numel() == 0) {
        return out;
    }
    if (q.scalar_type() == ScalarType::Double) {
        forward<double>(grid, scale, dense_channels(q), dense(kv), bias_table, nullptr, out);
    } else {
        forward<float>(grid, scale, dense_channels(q), dense(kv), bias_table, nullptr, out);
    }
    return out;
}

void check_cosines(const Tensor& cosines, const Tensor& qkv, int64_t num_heads) {
    check_floating_cpu(cosines, "cosine_scale", 1);
    STD_TORCH_CHECK(cosines.scalar_type() == qkv.scalar_type() && cosines.size(0) == num_heads &&
                        cosines.is_contiguous(),
                    "cosine_scale must be a dense (num_heads,) in the type of qkv.");
}

// softmax(cosine_scale cos(q, k) + bias + mask) v: window_attention of qkv (B, H, W, 3C) whose
// heads of q and k are divided by their lengths; cosine_scale (num_heads,).
Tensor cosine_window_attention(const Tensor& qkv, const Tensor& bias_table, const Tensor& cosines,
                               int64_t window_size, int64_t num_heads, int64_t shift) {
    const WindowGrid grid = checked(qkv, std::nullopt, bias_table, window_size, num_heads, shift);
    check_cosines(cosines, qkv, num_heads);
    const Tensor out =
        torch::stable::new_empty(qkv, {qkv.size(0), grid.height, grid.width, grid.channels});
    if (out.numel() == 0) {
        return out;
    }
    if (qkv.scalar_type() == ScalarType::Double) {
        forward<double>(grid, 1, dense_channels(qkv), std::nullopt, bias_table,
                        cosines.const_data_ptr<double>(), out);
    } else {
        forward<float>(grid, 1, dense_channels(qkv), std::nullopt, bias_table,
                       cosines.const_data_ptr<float>(), out);
    }
    return out;
}

// Refuses a gradient that is not of the output.
void check_grad(const Tensor& grad, const Tensor& q, const WindowGrid& grid) {
    check_floating_cpu(grad, "grad", 4);
    STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && grad.size(0) == q.size(0) &&
                        grad.size(1) == grid.height && grad.size(2) == grid.width &&
                        grad.size(3) == grid.channels,
                    "grad must be (B, H, W, C), in the type of q.");
}

// (dqkv, dbias_table, dcosine_scale) of cosine_window_attention.
std::tuple<Tensor, Tensor, Tensor> cosine_window_attention_backward(
    const Tensor& grad, const Tensor& qkv, const Tensor& bias_table, const Tensor& cosines,
    int64_t window_size, int64_t num_heads, int64_t shift) {
    const WindowGrid grid = checked(qkv, std::nullopt, bias_table, window_size, num_heads, shift);
    check_cosines(cosines, qkv, num_heads);
    check_grad(grad, qkv, grid);
    const Tensor dqkv = torch::stable::new_empty(qkv, qkv.sizes());
    const Tensor dtable = torch::stable::new_empty(bias_table, bias_table.sizes());
    const Tensor dcosines = torch::stable::new_empty(cosines, cosines.sizes());
    const Tensor none = torch::stable::new_empty(qkv, {0});
    if (grad.numel() == 0) {
        return {dqkv, torch::stable::fill_(dtable, 0), torch::stable::fill_(dcosines, 0)};
    }
    if (qkv.scalar_type() == ScalarType::Double) {
        backward<double>(grid, 1, dense_channels(grad), dense_channels(qkv), std::nullopt,
                         bias_table, cosines.const_data_ptr<double>(), dqkv, none, dtable,
                         dcosines.mutable_data_ptr<double>());
    } else {
        backward<float>(grid, 1, dense_channels(grad), dense_channels(qkv), std::nullopt,
                        bias_table, cosines.const_data_ptr<float>(), dqkv, none, dtable,
                        dcosines.mutable_data_ptr<float>());
    }
    return {dqkv, dtable, dcosines};
}

// (dq, dkv, dbias_table) of window_attention; dkv is empty where kv was not given.
std::tuple<Tensor, Tensor, Tensor> window_attention_backward(const Tensor& grad, const Tensor& q,
                                                             std::optional<Tensor> kv,
                                                             const Tensor& bias_table,
                                                             int64_t window_size, int64_t num_heads,
                                                             int64_t shift, double scale) {
    const WindowGrid grid = checked(q, kv, bias_table, window_size, num_heads, shift);
    check_grad(grad, q, grid);
    const Tensor dq = torch::stable::new_empty(q, q.sizes());
    const Tensor dkv =
        kv ? torch::stable::new_empty(*kv, kv->sizes()) : torch::stable::new_empty(q, {0});
    const Tensor dtable = torch::stable::new_empty(bias_table, bias_table.sizes());
    if (grad.numel() == 0) {
        return {dq, dkv, torch::stable::fill_(dtable, 0)};
    }
    if (q.scalar_type() == ScalarType::Double) {
        backward<double>(grid, scale, dense_channels(grad), dense_channels(q), dense(kv),
                         bias_table, nullptr, dq, dkv, dtable, nullptr);
    } else {
        backward<float>(grid, scale, dense_channels(grad), dense_channels(q), dense(kv), bias_table,
                        nullptr, dq, dkv, dtable, nullptr);
    }
    return {dq, dkv, dtable};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "window_attention(Tensor q, Tensor? kv, Tensor bias_table, int window_size, "
        "int num_heads, int shift, float scale) -> Tensor");
    m.def(
        "window_attention_backward(Tensor grad, Tensor q, Tensor? kv, Tensor bias_table, "
        "int window_size, int num_heads, int shift, float scale) -> (Tensor, Tensor, Tensor)");
    m.def(
        "cosine_window_attention(Tensor qkv, Tensor bias_table, Tensor cosine_scale, "
        "int window_size, int num_heads, int shift) -> Tensor");
    m.def(
        "cosine_window_attention_backward(Tensor grad, Tensor qkv, Tensor bias_table, "
        "Tensor cosine_scale, int window_size, int num_heads, int shift) -> (Tensor, Tensor, "
        "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("window_attention", TORCH_BOX(&c2d::window_attention));
    m.impl("window_attention_backward", TORCH_BOX(&c2d::window_attention_backward));
    m.impl("cosine_window_attention", TORCH_BOX(&c2d::cosine_window_attention));
    m.impl("cosine_window_attention_backward", TORCH_BOX(&c2d::cosine_window_attention_backward));
}
