// The operators of c2d_kernels in float64 loops, written straight from their equations.
//
// Only the tests compile this file (tests/oracle.py); neither torch nor any other source of the
// project takes part in it. It is the slowest formulation on purpose: every score, mask, bias and
// position is formed where the equation names it, without the rewriting that the PyTorch references
// and the kernels rely on, so an error in such a rewriting cannot cancel here.
//
// Arrays are NumPy float64, C-contiguous. Feature maps are (B, H, W, C), scans (B, D, L).

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;

using std::int64_t;
using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using Vector = std::vector<double>;

namespace {

void require(bool condition, const std::string& sentence) {
    if (!condition) throw std::invalid_argument("oracle: " + sentence);
}

Array zeros(std::vector<py::ssize_t> shape) {
    Array result(std::move(shape));
    std::fill_n(result.mutable_data(), result.size(), 0.0);
    return result;
}

Vector softmax(const Vector& scores) {
    const double largest = *std::max_element(scores.begin(), scores.end());
    Vector weights(scores.size());
    double total = 0;
    for (size_t i = 0; i < scores.size(); ++i) total += weights[i] = std::exp(scores[i] - largest);
    for (double& weight : weights) weight /= total;
    return weights;
}

// ---------------------------------------------------------------------------------------------
// Selective scan: h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t)

// B or C as (D, N), (B, N, L) or (B, G, N, L), read at one batch, channel, state and time.
double projection(const Array& a, int64_t channels, int64_t b, int64_t d, int64_t n, int64_t t) {
    if (a.ndim() == 2) return a.at(d, n);
    if (a.ndim() == 3) return a.at(b, n, t);
    return a.at(b, d / (channels / a.shape(1)), n, t);
}

std::pair<Array, Array> selective_scan(const Array& u, const Array& delta, const Array& A,
                                       const Array& B, const Array& C,
                                       const std::optional<Array>& D, const std::optional<Array>& z,
                                       const std::optional<Array>& delta_bias,
                                       bool delta_softplus) {
    require(u.ndim() == 3 && delta.ndim() == 3 && A.ndim() == 2, "u, delta (B, D, L) and A (D, N)");
    const int64_t batch = u.shape(0), channels = u.shape(1), length = u.shape(2);
    const int64_t states = A.shape(1);
    Array y = zeros({batch, channels, length}), last = zeros({batch, channels, states});
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t d = 0; d < channels; ++d) {
            Vector h(states, 0.0);
            for (int64_t t = 0; t < length; ++t) {
                double step = delta.at(b, d, t) + (delta_bias ? delta_bias->at(d) : 0.0);
                // Mamba's softplus: the identity above 20, where log(1 + e^x) differs by 2e-9.
                if (delta_softplus && step <= 20) step = std::log1p(std::exp(step));
                double sum = 0;
                for (int64_t n = 0; n < states; ++n) {
                    h[n] = std::exp(step * A.at(d, n)) * h[n] +
                           step * projection(B, channels, b, d, n, t) * u.at(b, d, t);
                    sum += projection(C, channels, b, d, n, t) * h[n];
                }
                if (D) sum += D->at(d) * u.at(b, d, t);
                if (z) sum *= z->at(b, d, t) / (1 + std::exp(-z->at(b, d, t)));
                y.mutable_at(b, d, t) = sum;
            }
            for (int64_t n = 0; n < states; ++n) last.mutable_at(b, d, n) = h[n];
        }
    }
    return {y, last};
}

// ---------------------------------------------------------------------------------------------
// Window attention: softmax(scale q k^T + bias + mask) v in each window of the rolled map

// The map moved up and left by `shift`, around the edges: torch.roll(map, (-shift, -shift)).
Array roll(const Array& map, int64_t shift) {
    const int64_t height = map.shape(1), width = map.shape(2);
    Array rolled = zeros({map.shape(0), height, width, map.shape(3)});
    auto from = map.unchecked<4>();
    auto to = rolled.mutable_unchecked<4>();
    for (int64_t b = 0; b < map.shape(0); ++b)
        for (int64_t y = 0; y < height; ++y)
            for (int64_t x = 0; x < width; ++x)
                for (int64_t c = 0; c < map.shape(3); ++c)
                    to(b, y, x, c) = from(b, ((y + shift) % height + height) % height,
                                          ((x + shift) % width + width) % width, c);
    return rolled;
}

// Region of every position of the rolled map: three bands an axis, cut at n - window and n - shift.
std::vector<int> regions(int64_t height, int64_t width, int64_t window, int64_t shift) {
    const auto band = [&](int64_t p, int64_t n) {
        return p < n - window ? 0 : p < n - shift ? 1 : 2;
    };
    std::vector<int> ids(height * width);
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
            ids[y * width + x] = 3 * band(y, height) + band(x, width);
    return ids;
}

constexpr double masked = -100;  // Swin adds this to the score; it does not remove the key

Array window_attention(const Array& qkv, const Array& bias_table, int64_t window, int64_t heads,
                       int64_t shift, std::optional<double> scale) {
    require(qkv.ndim() == 4 && qkv.shape(3) % (3 * heads) == 0, "qkv is (B, H, W, 3 heads d)");
    require(qkv.shape(1) % window == 0 && qkv.shape(2) % window == 0, "whole windows only");
    require(bias_table.ndim() == 2 && bias_table.shape(0) == (2 * window - 1) * (2 * window - 1) &&
                bias_table.shape(1) == heads,
            "bias_table is ((2w-1)^2, heads)");
    const int64_t height = qkv.shape(1), width = qkv.shape(2), channels = qkv.shape(3) / 3;
    const int64_t head_dim = channels / heads, tokens = window * window;
    const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
    const Array rolled = roll(qkv, shift);
    const std::vector<int> region = regions(height, width, window, shift);
    const auto in = rolled.unchecked<4>();
    const auto table = bias_table.unchecked<2>();
    Array result = zeros({qkv.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < qkv.shape(0); ++b)
        for (int64_t top = 0; top < height; top += window)
            for (int64_t left = 0; left < width; left += window)
                for (int64_t h = 0; h < heads; ++h)
                    for (int64_t query = 0; query < tokens; ++query) {
                        const int64_t y = query / window, x = query % window;
                        Vector scores(tokens);
                        for (int64_t key = 0; key < tokens; ++key) {
                            const int64_t Y = key / window, X = key % window;
                            double product = 0;
                            for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                product += in(b, top + y, left + x, c) *
                                           in(b, top + Y, left + X, channels + c);
                            scores[key] = factor * product;
                            scores[key] += table(
                                (y - Y + window - 1) * (2 * window - 1) + x - X + window - 1, h);
                            if (shift > 0 && region[(top + y) * width + left + x] !=
                                                 region[(top + Y) * width + left + X])
                                scores[key] += masked;
                        }
                        const Vector weights = softmax(scores);
                        for (int64_t key = 0; key < tokens; ++key)
                            for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                out(b, top + y, left + x, c) +=
                                    weights[key] * in(b, top + key / window, left + key % window,
                                                      2 * channels + c);
                    }
    return roll(result, -shift);
}

// SRFormer's cells: a map (B, H, W, c) becomes (B, H/2, W/2, 4c), token (2i+a, 2j+b) filling the
// channels (2a+b)c .. (2a+b+1)c - 1 of cell (i, j). Windows are even, so cells never straddle two.
Array stack_cells(const Array& map, int64_t first_channel, int64_t channels) {
    Array result = zeros({map.shape(0), map.shape(1) / 2, map.shape(2) / 2, 4 * channels});
    const auto from = map.unchecked<4>();
    auto to = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < map.shape(0); ++b)
        for (int64_t y = 0; y < map.shape(1); ++y)
            for (int64_t x = 0; x < map.shape(2); ++x)
                for (int64_t c = 0; c < channels; ++c)
                    to(b, y / 2, x / 2, (2 * (y % 2) + x % 2) * channels + c) =
                        from(b, y, x, first_channel + c);
    return result;
}

Array permuted_window_attention(const Array& q, const Array& kv, const Array& bias_table,
                                int64_t window, int64_t heads, int64_t shift,
                                std::optional<double> scale) {
    require(q.ndim() == 4 && kv.ndim() == 4 && q.shape(3) % heads == 0, "q is (B, H, W, heads d)");
    require(kv.shape(3) * 2 == q.shape(3) && q.shape(3) % 4 == 0, "kv has half the channels of q");
    require(
        q.shape(1) % window == 0 && q.shape(2) % window == 0 && window % 2 == 0 && shift % 2 == 0,
        "whole windows, and an even window and shift");
    require(bias_table.ndim() == 2 && bias_table.shape(0) == (window - 1) * (window - 1) &&
                bias_table.shape(1) == heads,
            "bias_table is ((2(w/2)-1)^2, heads)");
    const int64_t height = q.shape(1), width = q.shape(2), channels = q.shape(3);
    const int64_t head_dim = channels / heads, half = window / 2;
    const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
    const Array rolled_q = roll(q, shift), rolled_kv = roll(kv, shift);
    const Array keys = stack_cells(rolled_kv, 0, channels / 4);
    const Array values = stack_cells(rolled_kv, channels / 4, channels / 4);
    const std::vector<int> region = regions(height, width, window, shift);
    const auto qs = rolled_q.unchecked<4>();
    const auto ks = keys.unchecked<4>(), vs = values.unchecked<4>();
    const auto table = bias_table.unchecked<2>();
    Array result = zeros({q.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < q.shape(0); ++b)
        for (int64_t y = 0; y < height; ++y)
            for (int64_t x = 0; x < width; ++x)
                for (int64_t h = 0; h < heads; ++h) {
                    const int64_t top = y / window * half, left = x / window * half;  // in cells
                    Vector scores(half * half);
                    for (int64_t key = 0; key < half * half; ++key) {
                        const int64_t Y = key / half, X = key % half;
                        double product = 0;
                        for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                            product += qs(b, y, x, c) * ks(b, top + Y, left + X, c);
                        const int64_t dy = y % window / 2 - Y, dx = x % window / 2 - X;
                        scores[key] = factor * product;
                        scores[key] += table((dy + half - 1) * (2 * half - 1) + dx + half - 1, h);
                        if (shift > 0 &&
                            region[y * width + x] != region[2 * (top + Y) * width + 2 * (left + X)])
                            scores[key] += masked;
                    }
                    const Vector weights = softmax(scores);
                    for (int64_t key = 0; key < half * half; ++key)
                        for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                            out(b, y, x, c) +=
                                weights[key] * vs(b, top + key / half, left + key % half, c);
                }
    return roll(result, -shift);
}

// ---------------------------------------------------------------------------------------------
// Channel correlation (HiT-SR's C-SC): out = v (q^T v / n)^T over the n tokens a window really has

Array channel_correlation(const Array& q, const Array& v, int64_t window_height,
                          int64_t window_width) {
    require(q.ndim() == 4 && v.ndim() == 4 && q.shape(3) == v.shape(3), "q and v are (B, H, W, C)");
    const int64_t height = q.shape(1), width = q.shape(2), channels = q.shape(3);
    const auto qs = q.unchecked<4>(), vs = v.unchecked<4>();
    Array result = zeros({q.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < q.shape(0); ++b)
        for (int64_t top = 0; top < height; top += window_height)
            for (int64_t left = 0; left < width; left += window_width) {
                const int64_t bottom = std::min(top + window_height, height);
                const int64_t right = std::min(left + window_width, width);
                const double tokens = static_cast<double>((bottom - top) * (right - left));
                Vector map(channels * channels, 0.0);
                for (int64_t i = 0; i < channels; ++i)
                    for (int64_t j = 0; j < channels; ++j) {
                        for (int64_t y = top; y < bottom; ++y)
                            for (int64_t x = left; x < right; ++x)
                                map[i * channels + j] += qs(b, y, x, i) * vs(b, y, x, j);
                        map[i * channels + j] /= tokens;
                    }
                for (int64_t y = top; y < bottom; ++y)
                    for (int64_t x = left; x < right; ++x)
                        for (int64_t i = 0; i < channels; ++i)
                            for (int64_t j = 0; j < channels; ++j)
                                out(b, y, x, i) += map[i * channels + j] * vs(b, y, x, j);
            }
    return result;
}

// ---------------------------------------------------------------------------------------------
// Spatial correlation (HiT-SR's S-SC): out = (q p^T / head_dim + P) p, with the N x b^2 map formed

Array spatial_correlation(const Array& q, const Array& v, const Array& weight,
                          const Array& weight_bias, const Array& bias_table, int64_t window_height,
                          int64_t window_width, int64_t base_window, int64_t heads) {
    require(q.ndim() == 4 && v.ndim() == 4 && q.shape(3) % heads == 0, "q is (B, H, W, heads d)");
    const int64_t height = q.shape(1), width = q.shape(2), channels = q.shape(3);
    const int64_t head_dim = channels / heads;
    const int64_t cells_y = std::min(window_height, base_window), ratio_y = window_height / cells_y;
    const int64_t cells_x = std::min(window_width, base_window), ratio_x = window_width / cells_x;
    const int64_t cell_tokens = ratio_y * ratio_x, cells = cells_y * cells_x;
    require(height % window_height == 0 && width % window_width == 0, "whole windows only");
    require(ratio_y * cells_y == window_height && ratio_x * cells_x == window_width, "whole cells");
    require(weight.size() == cell_tokens && weight_bias.size() == 1,
            "weight is (1, R*R), bias (1,)");
    require(bias_table.ndim() == 2 && bias_table.shape(1) == heads &&
                bias_table.shape(0) == (2 * window_height - 1) * (2 * window_width - 1),
            "bias_table is ((2wh-1)(2ww-1), heads)");
    const auto qs = q.unchecked<4>(), vs = v.unchecked<4>();
    const auto table = bias_table.unchecked<2>();
    const double* w = weight.data();
    Array result = zeros({q.shape(0), height, width, channels});
    auto out = result.mutable_unchecked<4>();
    for (int64_t b = 0; b < q.shape(0); ++b)
        for (int64_t top = 0; top < height; top += window_height)
            for (int64_t left = 0; left < width; left += window_width) {
                // p: the Linear over a cell's tokens in row-major order, for each channel alike.
                Vector p(cells * channels);
                for (int64_t cell = 0; cell < cells; ++cell)
                    for (int64_t c = 0; c < channels; ++c) {
                        double sum = weight_bias.at(0);
                        for (int64_t token = 0; token < cell_tokens; ++token)
                            sum +=
                                w[token] * vs(b, top + cell / cells_x * ratio_y + token / ratio_x,
                                              left + cell % cells_x * ratio_x + token % ratio_x, c);
                        p[cell * channels + c] = sum;
                    }
                for (int64_t y = 0; y < window_height; ++y)
                    for (int64_t x = 0; x < window_width; ++x)
                        for (int64_t h = 0; h < heads; ++h)
                            for (int64_t cell = 0; cell < cells; ++cell) {
                                double score = 0;
                                for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                    score += qs(b, top + y, left + x, c) * p[cell * channels + c];
                                score /= static_cast<double>(head_dim);
                                // P: the relative position bias of the query and each token of the
                                // key cell, averaged.
                                double bias = 0;
                                for (int64_t token = 0; token < cell_tokens; ++token) {
                                    const int64_t Y = cell / cells_x * ratio_y + token / ratio_x;
                                    const int64_t X = cell % cells_x * ratio_x + token % ratio_x;
                                    bias +=
                                        table((y - Y + window_height - 1) * (2 * window_width - 1) +
                                                  x - X + window_width - 1,
                                              h);
                                }
                                score += bias / static_cast<double>(cell_tokens);
                                for (int64_t c = h * head_dim; c < (h + 1) * head_dim; ++c)
                                    out(b, top + y, left + x, c) += score * p[cell * channels + c];
                            }
            }
    return result;
}

// ---------------------------------------------------------------------------------------------
// Coordinate query: where the queries lie

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// Position of a query along one axis: the cell it falls in, its offset there, and the offset's
// binary digits, coarse to fine.
struct Position {
    int64_t cell;
    double offset;
    std::vector<int64_t> digits;
};

// Output pixel i of n_out over an axis of n: u = a/b, a = (2i+1)n - n_out and b = 2 n_out.
Position on_grid(int64_t i, int64_t n, int64_t n_out, int64_t levels) {
    const int64_t a = (2 * i + 1) * n - n_out, b = 2 * n_out;
    Position position{floor_divide(a, b), 0, {}};
    // The last 2^-13 of a cell counts as the next one: floor(u + 2^-13).
    if ((a - position.cell * b) * 8192 >= b * 8191) ++position.cell;
    const int64_t rest =
        a - position.cell * b;  // offset = rest / b, from -2^-13 to below 1 - 2^-13
    position.offset = static_cast<double>(rest) / static_cast<double>(b);
    for (int64_t l = 0; l < levels; ++l) {
        const int64_t parts = int64_t{1} << (l + 1);
        // floor(offset * parts + 2^-10), over the common denominator 1024 b
        const int64_t part = floor_divide(1024 * parts * rest + b, 1024 * b);
        position.digits.push_back(std::clamp<int64_t>(part, 0, parts - 1) % 2);
    }
    return position;
}

// A coordinate in [-1, 1] (pixel centres) over an axis of n: u = (y + 1) n / 2 - 1/2.
Position at_coordinate(double coordinate, int64_t n, int64_t levels) {
    const double u = (coordinate + 1) * static_cast<double>(n) / 2 - 0.5;
    const double cell = std::floor(u + std::ldexp(1.0, -13));
    Position position{static_cast<int64_t>(cell), u - cell, {}};
    for (int64_t l = 0; l < levels; ++l) {
        const double parts = std::ldexp(1.0, static_cast<int>(l) + 1);
        const double part = std::floor(position.offset * parts + std::ldexp(1.0, -10));
        position.digits.push_back(static_cast<int64_t>(std::clamp(part, 0.0, parts - 1)) % 2);
    }
    return position;
}

// Cells (n,), offsets (n,) and digits (n, levels) of some positions of one axis.
std::tuple<Integers, Array, Integers> as_arrays(const std::vector<Position>& positions,
                                                int64_t levels) {
    const auto n = static_cast<py::ssize_t>(positions.size());
    Integers cells(n), digits({n, static_cast<py::ssize_t>(levels)});
    Array offsets(n);
    for (py::ssize_t i = 0; i < n; ++i) {
        cells.mutable_at(i) = positions[i].cell;
        offsets.mutable_at(i) = positions[i].offset;
        for (int64_t l = 0; l < levels; ++l) digits.mutable_at(i, l) = positions[i].digits[l];
    }
    return {cells, offsets, digits};
}

std::tuple<Integers, Array, Integers> grid_positions(int64_t n, int64_t n_out, int64_t levels) {
    std::vector<Position> positions;
    for (int64_t i = 0; i < n_out; ++i) positions.push_back(on_grid(i, n, n_out, levels));
    return as_arrays(positions, levels);
}

std::tuple<Integers, Array, Integers> coordinate_positions(const Array& coordinates, int64_t n,
                                                           int64_t levels) {
    std::vector<Position> positions;
    for (py::ssize_t i = 0; i < coordinates.size(); ++i)
        positions.push_back(at_coordinate(coordinates.at(i), n, levels));
    return as_arrays(positions, levels);
}

// ---------------------------------------------------------------------------------------------
// Coordinate query: what is computed there

double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

Vector gelu(Vector values) {
    for (double& value : values) value = gelu(value);
    return values;
}

struct Linear {
    Array weight, bias;  // (out, in), (out,)

    Vector operator()(const Vector& in) const {
        require(weight.ndim() == 2 && weight.shape(1) == static_cast<int64_t>(in.size()),
                "a Linear's weight does not fit its input");
        Vector out(weight.shape(0));
        for (size_t o = 0; o < out.size(); ++o) {
            out[o] = bias.at(o);
            for (size_t i = 0; i < in.size(); ++i) out[o] += weight.at(o, i) * in[i];
        }
        return out;
    }
};

struct LayerNorm {
    Array weight, bias;  // (n,), (n,)

    Vector operator()(Vector values) const {
        require(weight.size() == static_cast<int64_t>(values.size()), "a LayerNorm does not fit");
        const double n = static_cast<double>(values.size());
        const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
        double variance = 0;
        for (double value : values) variance += (value - mean) * (value - mean) / n;
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = (values[i] - mean) / std::sqrt(variance + 1e-5) * weight.at(i) + bias.at(i);
        return values;
    }
};

struct Mlp {
    LayerNorm norm;
    Linear fc1, fc2;

    Vector operator()(const Vector& in) const { return fc2(gelu(fc1(norm(in)))); }
};

struct Attention {
    Linear qkv;
    LayerNorm k_norm, v_norm;
    Linear proj1, proj2;
};

// The weights in the order of coordinate_query_weight_shapes: every MLP, then every attention.
std::pair<std::vector<Mlp>, std::vector<Attention>> read_weights(const std::vector<Array>& weights,
                                                                 int64_t levels,
                                                                 int64_t attentions) {
    require(static_cast<int64_t>(weights.size()) == 6 * levels + 10 * attentions,
            "weights are 6 an MLP and 10 an attention");
    const Array* w = weights.data();
    std::vector<Mlp> mlps;
    for (int64_t l = 0; l < levels; ++l, w += 6)
        mlps.push_back({{w[0], w[1]}, {w[2], w[3]}, {w[4], w[5]}});
    std::vector<Attention> layers;
    for (int64_t i = 0; i < attentions; ++i, w += 10)
        layers.push_back({{w[0], w[1]}, {w[2], w[3]}, {w[4], w[5]}, {w[6], w[7]}, {w[8], w[9]}});
    return {std::move(mlps), std::move(layers)};
}

// features (B, H, W, C), image (B, H, W, 3), the queries' cells and offsets (B, Q, 2) and digits
// (B, Q, levels, 2), last axis (y, x), rel_cell (B, 2). Returns the values (B, Q, 3) and, for every
// attention, the sum over the queries of k^T v (attentions, B, heads, d, d). With `averages`, of
// the same shape, those are applied in place of the queries' own sum / Q.
std::pair<Array, Array> coordinate_query(const Array& features, const Array& image,
                                         const std::vector<Array>& weights, int64_t levels,
                                         int64_t heads, int64_t attentions, const Integers& cells,
                                         const Array& offsets, const Integers& digits,
                                         const Array& rel_cell,
                                         const std::optional<Array>& averages) {
    require(features.ndim() == 4 && image.ndim() == 4 && image.shape(3) == 3,
            "features are (B, H, W, C), image (B, H, W, 3)");
    const int64_t height = features.shape(1), width = features.shape(2),
                  channels = features.shape(3);
    const int64_t batch = cells.shape(0), queries = cells.shape(1), head_dim = channels / heads;
    const auto [mlps, layers] = read_weights(weights, levels, attentions);
    Array result = zeros({batch, queries, 3});
    Array sums = zeros({attentions, batch, heads, head_dim, head_dim});
    for (int64_t b = 0; b < batch; ++b) {
        std::vector<Vector> states(queries), rgb(queries, Vector(3, 0.0));
        for (int64_t n = 0; n < queries; ++n) {
            // The four neighbours, each by its bilinear weight, concatenated row by row.
            for (int64_t corner = 0; corner < 4; ++corner) {
                const int64_t dy = corner / 2, dx = corner % 2;
                const double ty = offsets.at(b, n, 0), tx = offsets.at(b, n, 1);
                const double weight = (dy ? ty : 1 - ty) * (dx ? tx : 1 - tx);
                const int64_t y = std::clamp<int64_t>(cells.at(b, n, 0) + dy, 0, height - 1);
                const int64_t x = std::clamp<int64_t>(cells.at(b, n, 1) + dx, 0, width - 1);
                for (int64_t c = 0; c < channels; ++c)
                    states[n].push_back(weight * features.at(b, y, x, c));
                for (int64_t c = 0; c < 3; ++c) rgb[n][c] += weight * image.at(b, y, x, c);
            }
            states[n].push_back(rel_cell.at(b, 0));
            states[n].push_back(rel_cell.at(b, 1));
        }
        for (int64_t l = 0; l < levels; ++l) {
            for (int64_t n = 0; n < queries; ++n) {
                states[n].push_back(static_cast<double>(digits.at(b, n, l, 0)));
                states[n].push_back(static_cast<double>(digits.at(b, n, l, 1)));
                states[n] = mlps[l](states[n]);
            }
            if (l >= attentions) continue;
            const Attention& layer = layers[l];
            std::vector<Vector> projected(queries);
            for (int64_t n = 0; n < queries; ++n) projected[n] = layer.qkv(states[n]);
            for (int64_t n = 0; n < queries; ++n)
                for (int64_t h = 0; h < heads; ++h) {
                    const auto k_first = projected[n].begin() + channels + h * head_dim;
                    const auto v_first = projected[n].begin() + 2 * channels + h * head_dim;
                    const Vector k = layer.k_norm(Vector(k_first, k_first + head_dim));
                    const Vector v = layer.v_norm(Vector(v_first, v_first + head_dim));
                    for (int64_t i = 0; i < head_dim; ++i)
                        for (int64_t j = 0; j < head_dim; ++j)
                            sums.mutable_at(l, b, h, i, j) += k[i] * v[j];
                }
            for (int64_t n = 0; n < queries; ++n) {
                Vector inner = states[n];  // becomes o + x with o = q M
                for (int64_t h = 0; h < heads; ++h)
                    for (int64_t i = 0; i < head_dim; ++i)
                        for (int64_t j = 0; j < head_dim; ++j)
                            inner[h * head_dim + j] +=
                                projected[n][h * head_dim + i] *
                                (averages ? averages->at(l, b, h, i, j)
                                          : sums.at(l, b, h, i, j) / static_cast<double>(queries));
                const Vector outer = layer.proj2(gelu(layer.proj1(inner)));
                for (int64_t c = 0; c < channels; ++c) states[n][c] += outer[c];
            }
        }
        for (int64_t n = 0; n < queries; ++n)
            for (int64_t c = 0; c < 3; ++c) result.mutable_at(b, n, c) = states[n][c] + rgb[n][c];
    }
    return {result, sums};
}

}  // namespace

PYBIND11_MODULE(c2d_oracle, module) {
    module.doc() = "c2d_kernels' operators in float64 loops, for its tests";
    module.def("selective_scan", &selective_scan);
    module.def("window_attention", &window_attention);
    module.def("permuted_window_attention", &permuted_window_attention);
    module.def("channel_correlation", &channel_correlation);
    module.def("spatial_correlation", &spatial_correlation);
    module.def("grid_positions", &grid_positions);
    module.def("coordinate_positions", &coordinate_positions);
    module.def("coordinate_query", &coordinate_query);
}
