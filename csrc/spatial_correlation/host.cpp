// Spatial correlation on the CPU, forward on the host side: how the bias is laid out, and the walk
// over windows.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "host.h"

namespace c2d {
namespace spatial {
namespace {

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
                               cells.transposed.data() + window * grid.transposed_of_window(),
                               bias.view(), out.tokens(grid, first + window), memory);
        });
    };
    const int64_t elements = kernels<T>().scratch(grid);
    if (!worth_sharing(grid.windows)) {
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

}  // namespace

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

}  // namespace spatial

namespace {

// (q p^T / d + P) p in each window, p being v reduced to base_height x base_width cells by weight
// (1, tokens of a cell) and weight_bias (1,), P the bias table ((2h-1)(2w-1), heads) averaged over
// cells. q, v (B, H, W, C), the map a multiple of the window; all of one type, float32 or float64.
Tensor spatial_correlation(const Tensor& q, const Tensor& v, const Tensor& weight,
                           const Tensor& weight_bias, const Tensor& bias_table,
                           int64_t window_height, int64_t window_width, int64_t base_height,
                           int64_t base_width, int64_t num_heads) {
    spatial::check(q, v, weight, weight_bias, bias_table, window_height, window_width, base_height,
                   base_width, num_heads);
    const Tensor out = spatial::dense_like(q);
    if (out.numel() == 0) {
        return out;
    }
    const bool wide = q.scalar_type() == ScalarType::Double;
    const spatial::Grid grid(
        q, window_height, window_width, base_height, base_width, num_heads,
        wide ? spatial::kernels<double>().lanes : spatial::kernels<float>().lanes);
    (wide ? spatial::forward<double>
          : spatial::forward<float>)(grid, dense_channels(q), dense_channels(v),
                                     dense_channels(weight), weight_bias, bias_table, out);
    return out;
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "spatial_correlation(Tensor q, Tensor v, Tensor weight, Tensor weight_bias, "
        "Tensor bias_table, int window_height, int window_width, int base_height, "
        "int base_width, int num_heads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("spatial_correlation", TORCH_BOX(&c2d::spatial_correlation));
}
