// Attention in rectangular windows whose keys may come from a larger window, on the CPU, host side:
// which token is where, threads and scratch memory. The arithmetic is window_attention's.
//
// Token (y, x) of window (Y, X) of the map rolled by `shift` is token ((Y h + y + shift) mod H,
// ...) of the map. Its keys are those of a window larger by `overlap` on each side, and zero beyond
// the map: they are read from a copy of k and v with a border of zeros, (H + 2a) (W + 2b) / (H W)
// of it. Labels of the map's pixels may separate tokens as the wrapping of a shift does. A token is
// then a key of several windows, so the backward writes the gradients of each window's keys beside
// each other and adds up the copies of each token afterwards. The gradient of the bias is summed
// over groups of windows, and then over the groups, in order: results are bitwise the same for any
// number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "../window_attention/windows.h"

namespace c2d {
namespace {

constexpr int64_t kGroups = 8;  // of windows, for the gradient of the bias; a buffer each
// Of pixels: 9 times as many are whole numbers in float32.
constexpr int32_t kLabels = int32_t{1} << 20;

struct Sides {
    int64_t y, x;
};

// The windows of a call: their sizes, and where their tokens are.
struct Rectangles {
    int64_t images, height, width, channels, heads, head_dim;
    Sides window, overlap, shift, keys_of;  // keys_of: sides of the window that the keys are from
    int64_t down, across, windows, queries, keys;
    const int32_t* labels = nullptr;  // of the map's pixels, or none

    Rectangles(const Tensor& map, int64_t num_heads, Sides window_size, Sides more, Sides moved)
        : images(map.size(0)),
          height(map.size(1)),
          width(map.size(2)),
          channels(map.size(3)),
          heads(num_heads),
          head_dim(channels / heads),
          window(window_size),
          overlap(more),
          shift(moved),
          keys_of{window.y + 2 * overlap.y, window.x + 2 * overlap.x},
          down(height / window.y),
          across(width / window.x),
          windows(images * down * across),
          queries(window.y * window.x),
          keys(keys_of.y * keys_of.x) {}

    bool overlaps() const { return overlap.y > 0 || overlap.x > 0; }

    // Offsets of the tokens of a rectangle of `sides` that begins where window `index` does. With
    // an overlap the map has a border, and the larger window begins there too.
    void tokens(int64_t index, const Tensor& map, Sides sides, std::vector<int64_t>& to) const {
        const int64_t rows = map.size(1), columns = map.size(2);
        const int64_t image = index / (across * down) * map.stride(0);
        const int64_t top = index / across % down * window.y + shift.y;
        const int64_t left = index % across * window.x + shift.x;
        for (int64_t y = 0, n = 0; y < sides.y; ++y) {
            const int64_t row = (top + y) % rows;
            for (int64_t x = 0; x < sides.x; ++x, ++n) {
                to[n] = image + row * map.stride(1) + (left + x) % columns * map.stride(2);
            }
        }
    }

    // Without labels, the mask separates tokens of some window only in the last row or column of
    // windows.
    bool masked(int64_t index) const {
        return labels != nullptr || (shift.y > 0 && index / across % down == down - 1) ||
               (shift.x > 0 && index % across == across - 1);
    }

    // Which of the nine regions of the rolled map token n of a window is from, for each label.
    int64_t region(int64_t index, int64_t n) const {
        const int64_t y = index / across % down * window.y + n / window.x;
        const int64_t x = index % across * window.x + n % window.x;
        const int64_t row = (y >= height - window.y) + (y >= height - shift.y);
        const int64_t column = (x >= width - window.x) + (x >= width - shift.x);
        const int64_t label =
            labels == nullptr ? 0 : labels[(y + shift.y) % height * width + (x + shift.x) % width];
        return label * 9 + row * 3 + column;
    }
};

// k or v with a border of zeros, contiguous
template <class T>
Tensor bordered(const Rectangles& grid, const Tensor& map) {
    const int64_t rows = grid.height + 2 * grid.overlap.y,
                  columns = grid.width + 2 * grid.overlap.x;
    const int64_t width = grid.channels;
    const Tensor to = torch::stable::new_empty(map, {grid.images, rows, columns, width});
    T* const base = to.mutable_data_ptr<T>();
    const T* const source = map.const_data_ptr<T>();
    torch::stable::parallel_for(0, grid.images * rows, 8, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            T* row = base + at * columns * width;
            const int64_t y = at % rows - grid.overlap.y;
            std::fill_n(row, columns * width, T(0));
            if (y < 0 || y >= grid.height) {
                continue;
            }
            const T* from = source + at / rows * map.stride(0) + y * map.stride(1);
            for (int64_t x = 0; x < grid.width; ++x) {
                std::memcpy(row + (x + grid.overlap.x) * width, from + x * map.stride(2),
                            width * sizeof(T));
            }
        }
    });
    return to;
}

bool same_layout(const Tensor& a, const Tensor& b) {
    return a.stride(0) == b.stride(0) && a.stride(1) == b.stride(1) && a.stride(2) == b.stride(2);
}

// k and v as kernels read them: in one layout, with a border of zeros where windows overlap.
template <class T>
struct Inputs {
    Tensor q_map, k_map, v_map;
    const T *q, *k, *v;

    Inputs(const Rectangles& grid, const Tensor& queries, const Tensor& keys, const Tensor& values)
        : q_map(dense_channels(queries)),
          k_map(dense_channels(keys)),
          v_map(dense_channels(values)) {
        if (grid.overlaps()) {
            k_map = bordered<T>(grid, k_map);
            v_map = bordered<T>(grid, v_map);
        } else if (!same_layout(k_map, v_map)) {
            k_map = torch::stable::contiguous(k_map);
            v_map = torch::stable::contiguous(v_map);
        }
        q = q_map.template const_data_ptr<T>();
        k = k_map.template const_data_ptr<T>();
        v = v_map.template const_data_ptr<T>();
    }
};

// What a thread keeps of one window: where its tokens are and their regions.
template <class T>
struct Place {
    std::vector<int64_t> q_token, key_token;
    std::vector<T> region;  // of queries, in blocks; of keys too, for a mask has no overlap
    bool masked = false;

    Place(const Rectangles& grid, const AttentionSizes<T>& sizes)
        : q_token(grid.queries), key_token(grid.keys), region(sizes.block * sizes.blocks) {}

    void move_to(const Rectangles& grid, int64_t index, const Tensor& q, const Tensor& k) {
        grid.tokens(index, q, grid.window, q_token);
        grid.tokens(index, k, grid.keys_of, key_token);
        masked = grid.masked(index);
        for (int64_t n = 0; masked && n < grid.queries; ++n) {
            region[n] = T(grid.region(index, n));
        }
    }

    AttentionHead<T> head(const Inputs<T>& in, const Run& run, const T* bias) const {
        const T* regions = masked ? region.data() : nullptr;
        return {in.q + run.channel,
                in.k,
                in.v,
                q_token.data(),
                key_token.data(),
                &run,
                1,
                bias,
                regions,
                regions};
    }
};

Run run_of(const Rectangles& grid, int64_t head) {
    return {0, head * grid.head_dim, 0, grid.head_dim};
}

// bias (heads, N, M) as kernels read it: [heads][blocks][keys][block]
template <class T>
void in_blocks(const AttentionSizes<T>& sizes, const Tensor& bias, T* to) {
    const T* from = bias.const_data_ptr<T>();
    const std::vector<int64_t> query = queries_of(sizes);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    torch::stable::parallel_for(0, bias.size(0) * sizes.blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t head = task / sizes.blocks, block = task % sizes.blocks;
            const T* const rows = from + head * sizes.queries * sizes.keys;
            T* const block_to = to + head * pairs + block * sizes.keys * sizes.block;
            for (int64_t n = 0; n < sizes.block; ++n) {
                const T* const row = rows + query[block * sizes.block + n] * sizes.keys;
                for (int64_t m = 0; m < sizes.keys; ++m) {
                    block_to[m * sizes.block + n] = row[m];
                }
            }
        }
    });
}

template <class T>
void forward(const Rectangles& grid, double scale, const Inputs<T>& in, const Tensor& bias_map,
             const Tensor& out_map) {
    const auto& kernel = attention_kernels<T>();
    const auto sizes = attention_sizes<T>(grid.queries, grid.keys, grid.head_dim, 1, scale);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    Aligned<T> bias(grid.heads * pairs);
    in_blocks(sizes, bias_map, bias.data());
    T* const out = out_map.mutable_data_ptr<T>();
    const int64_t work = 2 * pairs * grid.channels;
    torch::stable::parallel_for(
        0, grid.windows, std::max<int64_t>(1, kSmallTask / work), [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(kernel.forward_scratch(sizes));
            Place<T> place(grid, sizes);
            std::vector<int64_t> out_token(grid.queries);
            for (int64_t index = begin; index < end; ++index) {
                place.move_to(grid, index, in.q_map, in.k_map);
                grid.tokens(index, out_map, grid.window, out_token);
                for (int64_t head = 0; head < grid.heads; ++head) {
                    const Run run = run_of(grid, head);
                    kernel.forward(sizes, place.head(in, run, bias.data() + head * pairs),
                                   out + run.channel, out_token.data(), scratch.data());
                }
            }
        });
}

// Adds up what each token's copies in the windows' keys, (windows, keys, C), have been given.
template <class T>
void add_copies(const Rectangles& grid, const T* copies, const Tensor& to_map) {
    const int64_t width = grid.channels;
    T* const base = to_map.mutable_data_ptr<T>();
    const auto first = [](int64_t at, int64_t keys, int64_t window) {
        return at < keys ? int64_t{0} : (at - keys) / window + 1;
    };
    torch::stable::parallel_for(0, grid.images * grid.height, 4, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const int64_t image = at / grid.height, y = at % grid.height + grid.overlap.y;
            const int64_t last_row = std::min(y / grid.window.y, grid.down - 1);
            for (int64_t column = 0; column < grid.width; ++column) {
                T* const to = base + (at * grid.width + column) * width;
                std::fill_n(to, width, T(0));
                const int64_t x = column + grid.overlap.x;
                const int64_t last = std::min(x / grid.window.x, grid.across - 1);
                for (int64_t Y = first(y, grid.keys_of.y, grid.window.y); Y <= last_row; ++Y) {
                    for (int64_t X = first(x, grid.keys_of.x, grid.window.x); X <= last; ++X) {
                        const int64_t window = (image * grid.down + Y) * grid.across + X;
                        const int64_t key =
                            (y - Y * grid.window.y) * grid.keys_of.x + x - X * grid.window.x;
                        const T* const from = copies + (window * grid.keys + key) * width;
                        for (int64_t c = 0; c < width; ++c) {
                            to[c] += from[c];
                        }
                    }
                }
            }
        }
    });
}

template <class T>
void backward(const Rectangles& grid, double scale, const Tensor& grad, const Inputs<T>& in,
              const Tensor& bias_map, const Tensor& dq_map, const Tensor& dk_map,
              const Tensor& dv_map, const Tensor& dbias) {
    const auto& kernel = attention_kernels<T>();
    const auto sizes = attention_sizes<T>(grid.queries, grid.keys, grid.head_dim, 1, scale);
    const int64_t pairs = sizes.blocks * sizes.keys * sizes.block;
    Aligned<T> bias(grid.heads * pairs);
    in_blocks(sizes, bias_map, bias.data());
    const int64_t copied = grid.overlaps() ? grid.windows * grid.keys * grid.channels : 0;
    Aligned<T> k_copies(copied), v_copies(copied);
    T* const dq = dq_map.mutable_data_ptr<T>();
    T* const dk = grid.overlaps() ? k_copies.data() : dk_map.mutable_data_ptr<T>();
    T* const dv = grid.overlaps() ? v_copies.data() : dv_map.mutable_data_ptr<T>();

    const int64_t group = (grid.windows + kGroups - 1) / kGroups;
    const int64_t groups = (grid.windows + group - 1) / group;
    Aligned<T> sums(groups * grid.heads * pairs);  // of zeros
    torch::stable::parallel_for(0, groups * grid.heads, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(kernel.backward_scratch(sizes));
        Place<T> place(grid, sizes);
        std::vector<int64_t> grad_token(grid.queries), dq_token(grid.queries), dk_token(grid.keys);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t start = task / grid.heads * group, head = task % grid.heads;
            T* const sum = sums.data() + task * pairs;
            const Run run = run_of(grid, head);
            for (int64_t index = start; index < std::min(start + group, grid.windows); ++index) {
                place.move_to(grid, index, in.q_map, in.k_map);
                grid.tokens(index, grad, grid.window, grad_token);
                grid.tokens(index, dq_map, grid.window, dq_token);
                if (grid.overlaps()) {
                    for (int64_t m = 0; m < grid.keys; ++m) {
                        dk_token[m] = (index * grid.keys + m) * grid.channels;
                    }
                } else {
                    grid.tokens(index, dk_map, grid.window, dk_token);
                }
                kernel.backward(sizes, place.head(in, run, bias.data() + head * pairs),
                                {grad.const_data_ptr<T>() + run.channel, grad_token.data(),
                                 dq + run.channel, dk, dv, dq_token.data(), dk_token.data(), sum},
                                scratch.data());
            }
        }
    });
    if (grid.overlaps()) {
        add_copies(grid, k_copies.data(), dk_map);
        add_copies(grid, v_copies.data(), dv_map);
    }
    T* const to = dbias.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, grid.heads * grid.queries, 16, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const int64_t head = at / grid.queries, n = at % grid.queries;
            const int64_t block = n / sizes.block * sizes.keys * sizes.block + n % sizes.block;
            for (int64_t m = 0; m < grid.keys; ++m) {
                double sum = 0;
                for (int64_t g = 0; g < groups; ++g) {
                    sum += sums.data()[(g * grid.heads + head) * pairs + block + m * sizes.block];
                }
                to[at * grid.keys + m] = T(sum);
            }
        }
    });
}

// Checks the arguments and works out the windows they describe.
Rectangles checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                   const std::optional<Tensor>& regions, Sides window, int64_t heads, Sides overlap,
                   Sides shift) {
    check_floating_cpu(q, "q", 4);
    check_same(k, "k", q, "q");
    check_same(v, "v", q, "q");
    check_floating_cpu(bias, "bias", 3);
    STD_TORCH_CHECK(k.is_cpu() && v.is_cpu(), "k and v must be CPU tensors.");
    STD_TORCH_CHECK(bias.scalar_type() == q.scalar_type(), "bias must have the type of q.");
    STD_TORCH_CHECK(window.y > 0 && window.x > 0 && heads > 0,
                    "the window and num_heads must be positive.");
    STD_TORCH_CHECK(overlap.y >= 0 && overlap.x >= 0, "overlap must not be negative.");
    STD_TORCH_CHECK(0 <= shift.y && shift.y < window.y && 0 <= shift.x && shift.x < window.x,
                    "shift must be from 0 to the window's sides - 1.");
    STD_TORCH_CHECK((overlap.y == 0 && overlap.x == 0) || (shift.y == 0 && shift.x == 0),
                    "windows are shifted or overlap, not both.");
    STD_TORCH_CHECK(q.size(1) % window.y == 0 && q.size(2) % window.x == 0,
                    "the map must be a multiple of the window.");
    STD_TORCH_CHECK(q.size(3) > 0 && q.size(3) % heads == 0, "num_heads must divide C.");
    Rectangles grid(q, heads, window, overlap, shift);
    STD_TORCH_CHECK(bias.size(0) == heads && bias.size(1) == grid.queries &&
                        bias.size(2) == grid.keys && bias.is_contiguous(),
                    "bias must be a contiguous (", heads, ", ", grid.queries, ", ", grid.keys,
                    ").");
    if (regions.has_value()) {
        STD_TORCH_CHECK(!grid.overlaps(), "windows that overlap have no regions.");
        STD_TORCH_CHECK(regions->is_cpu() && regions->scalar_type() == ScalarType::Int &&
                            regions->dim() == 2 && regions->is_contiguous() &&
                            regions->size(0) == grid.height && regions->size(1) == grid.width,
                        "regions must be a contiguous (H, W) of int32.");
        grid.labels = regions->const_data_ptr<int32_t>();
        const auto fits = [](int32_t label) { return 0 <= label && label < kLabels; };
        STD_TORCH_CHECK(std::all_of(grid.labels, grid.labels + regions->numel(), fits),
                        "regions must hold integers from 0 to ", kLabels - 1, ".");
    }
    return grid;
}

// softmax(scale q k^T + bias + mask) v in windows of height x width: q, k and v
// (B, H, W, C), bias (heads, N, M). All of one type, float32 or float64. Returns
// (B, H, W, C).
Tensor overlapping_window_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& bias, std::optional<Tensor> regions,
                                    int64_t window_height, int64_t window_width, int64_t num_heads,
                                    int64_t overlap_height, int64_t overlap_width,
                                    int64_t shift_down, int64_t shift_right, double scale) {
    const Rectangles grid =
        checked(q, k, v, bias, regions, {window_height, window_width}, num_heads,
                {overlap_height, overlap_width}, {shift_down, shift_right});
    const Tensor out = torch::stable::new_empty(q, q.sizes());
    if (out.numel() == 0) {
        return out;
    }
    if (q.scalar_type() == ScalarType::Double) {
        forward<double>(grid, scale, {grid, q, k, v}, bias, out);
    } else {
        forward<float>(grid, scale, {grid, q, k, v}, bias, out);
    }
    return out;
}

// (dq, dk, dv, dbias) of overlapping_window_attention.
std::tuple<Tensor, Tensor, Tensor, Tensor> overlapping_window_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
    std::optional<Tensor> regions, int64_t window_height, int64_t window_width, int64_t num_heads,
    int64_t overlap_height, int64_t overlap_width, int64_t shift_down, int64_t shift_right,
    double scale) {
    const Rectangles grid =
        checked(q, k, v, bias, regions, {window_height, window_width}, num_heads,
                {overlap_height, overlap_width}, {shift_down, shift_right});
    check_same(grad, "grad", q, "q");
    const Tensor dq = torch::stable::new_empty(q, q.sizes());
    const Tensor dk = torch::stable::new_empty(k, k.sizes());
    const Tensor dv = torch::stable::new_empty(v, v.sizes());
    const Tensor dbias = torch::stable::new_empty(bias, bias.sizes());
    if (grad.numel() == 0) {
        return {dq, dk, dv, torch::stable::fill_(dbias, 0)};
    }
    if (q.scalar_type() == ScalarType::Double) {
        backward<double>(grid, scale, dense_channels(grad), {grid, q, k, v}, bias, dq, dk, dv,
                         dbias);
    } else {
        backward<float>(grid, scale, dense_channels(grad), {grid, q, k, v}, bias, dq, dk, dv,
                        dbias);
    }
    return {dq, dk, dv, dbias};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "overlapping_window_attention(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? regions, "
        "int window_height, int window_width, int num_heads, int overlap_height, int "
        "overlap_width, int shift_down, "
        "int shift_right, float scale) -> Tensor");
    m.def(
        "overlapping_window_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor "
        "bias, Tensor? regions, int window_height, int window_width, int num_heads, int "
        "overlap_height, "
        "int overlap_width, int shift_down, int shift_right, float scale) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("overlapping_window_attention", TORCH_BOX(&c2d::overlapping_window_attention));
    m.impl("overlapping_window_attention_backward",
           TORCH_BOX(&c2d::overlapping_window_attention_backward));
}
