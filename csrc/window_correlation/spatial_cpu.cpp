// Spatial correlation on the CPU, one instruction set at a time: HiT-SR's spatial self-correlation
// (2407.05878), out = (q p^T / d + P) p in each window and head.
#include "spatial_tiles.h"

namespace c2d::C2D_ISA {
namespace {

constexpr int64_t kPart = 128;  // tokens turned at a time: q and out of them stay in cache

// dbias[token][cell] += sum over channels of grad[token][channel] * turned[channel][cell]; rows are
// channels, columns cells, and the factors of a tile stay in registers for all tokens.
template <class T>
struct Outer {
    const SpatialSizes& sizes;
    Strip<const T> grad;
    const T* turned;
    CellBias<T> dbias;

    template <int rows, int vectors>
    inline __attribute__((always_inline)) void tile(int64_t row, int64_t column) const {
        constexpr int lanes = kLanes<T>;
        Vector<T, lanes> factor[rows][vectors];
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                factor[r][v] =
                    load<T, lanes>(turned + (row + r) * sizes.padded + column + v * lanes);
            }
        }
        for (int64_t y = 0; y < sizes.height; ++y) {
            const T* from = grad.data + y * grad.row_stride + row;
            T* to = dbias.data + y % sizes.cell_height * dbias.row + column +
                    (sizes.base_height - 1 - y / sizes.cell_height) * sizes.base_width;
            for (int64_t x = 0; x < sizes.width; ++x) {
                Vector<T, lanes> sum[vectors] = {};
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) {
                    const T scalar = from[r];
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; ++v) {
                        sum[v] += scalar * factor[r][v];
                    }
                }
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    store<T, lanes>(to + v * lanes, load<T, lanes>(to + v * lanes) + sum[v]);
                }
                from += grad.token_stride;
                to += dbias.column;
            }
        }
    }
};

template <class T>
void gram(const SpatialSizes& sizes, const T* p, T* turned, T* gram) {
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    constexpr int lanes = kLanes<T>;
    int64_t at[lanes];
    for (int i = 0; i < lanes; ++i) {
        at[i] = i * channels;
    }
    for (int64_t cell = 0; cell < sizes.cells; cell += lanes) {
        turn<T>({p + cell * channels, at}, least(lanes, sizes.cells - cell), channels,
                turned + cell, sizes.padded);
    }
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const T* of_head = turned + head * d * sizes.padded;
        Dots<T>{of_head, of_head,     sizes.padded,        sizes.padded,
                d,       T(1) / T(d), gram + head * d * d, false}
            .all();
    }
}

template <class T>
int64_t scratch(const SpatialSizes& sizes) {
    return 3 * sizes.channels() * kPart;
}

template <class T>
void apply(const SpatialSizes& sizes, int64_t first, int64_t count, Tokens<const T> q,
           const T* gram, const T* turned, const TokenBias<T>& bias, Tokens<T> out, T* scratch) {
    constexpr int64_t block = kVectors * kLanes<T>;
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    T *q_turned = scratch, *out_turned = scratch + channels * kPart;
    for (int64_t start = first; start < first + count; start += kPart) {
        const int64_t tokens = least(kPart, first + count - start);
        turn<T>({q.data, q.at + start}, tokens, channels, q_turned, kPart);
        for (int64_t head = 0; head < sizes.heads; ++head) {
            for (int64_t n = 0; n < tokens; n += block) {
                const int64_t token = start + n;
                const int64_t place =
                    head * bias.head + token / sizes.width * bias.row + token % sizes.width;
                const Product<T> product{
                    {sizes.base_height, sizes.base_width, turned + head * d * sizes.padded,
                     sizes.padded, sizes.base_width, 1, bias.data + place, bias.down, bias.right},
                    {1, d, gram + head * d * d, 1, 0, d, q_turned + head * d * kPart + n, 0, kPart},
                    out_turned + head * d * kPart + n,
                    kPart,
                    false};
                const int64_t columns = least(block, rounded_up(tokens - n, kLanes<T>));
                tiles<kLanes<T>, kVectors>(product, d, 0, columns);
            }
        }
        turn_back<T>(out_turned, kPart, tokens, channels, {out.data, out.at + start});
    }
}

template <class T>
void backward_tokens(const SpatialSizes& sizes, int64_t first, int64_t count, Tokens<const T> q,
                     Tokens<const T> grad, const T* gram, Tokens<T> dq, T* dgram, T* scratch) {
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    T *q_turned = scratch, *grad_turned = scratch + channels * kPart,
      *dq_turned = scratch + 2 * channels * kPart;
    for (int64_t start = first; start < first + count; start += kPart) {
        const int64_t tokens = least(kPart, first + count - start);
        const int64_t columns = rounded_up(tokens, kLanes<T>);
        turn<T>({q.data, q.at + start}, tokens, channels, q_turned, kPart);
        turn<T>({grad.data, grad.at + start}, tokens, channels, grad_turned, kPart);
        for (int64_t head = 0; head < sizes.heads; ++head) {
            const int64_t at = head * d * kPart;
            Dots<T>{q_turned + at, grad_turned + at,     kPart,        columns, d,
                    T(1) / T(d),   dgram + head * d * d, start > first}
                .all();
            const Product<T> product{
                {1, d, gram + head * d * d, 1, 0, d, grad_turned + at, 0, kPart},
                {},
                dq_turned + at,
                kPart,
                false};
            tiles<kLanes<T>, kVectors>(product, d, 0, columns);
        }
        turn_back<T>(dq_turned, kPart, tokens, channels, {dq.data, dq.at + start});
    }
}

template <class T>
void backward_bias(const SpatialSizes& sizes, Strip<const T> grad, const T* turned,
                   CellBias<const T> bias, T* d_turned, CellBias<T> dbias) {
    constexpr int lanes = kLanes<T>;
    // Each row of cells is one sum over its tokens; cells one token high are all one sum.
    const bool flat = sizes.cell_height == 1;
    const int64_t sums = flat ? 1 : sizes.base_height;
    for (int64_t y = 0; y < sums; ++y) {
        const Product<T> product{
            {flat ? sizes.height : sizes.cell_height, sizes.width,
             grad.data + y * sizes.cell_height * grad.row_stride, 1, grad.row_stride,
             grad.token_stride, bias.data + (sizes.base_height - 1 - y) * sizes.base_width,
             flat ? -sizes.base_width : bias.row, bias.column},
            {},
            d_turned,
            sizes.padded,
            y > 0};
        tiles<lanes, kVectors>(product, sizes.head_dim, 0, sizes.padded);
    }
    tiles<lanes, kVectors>(Outer<T>{sizes, grad, turned, dbias}, sizes.head_dim, 0, sizes.padded);
}

template <class T>
void backward_gram(const SpatialSizes& sizes, const T* turned, const T* dgram, T* d_turned, T* dp) {
    constexpr int lanes = kLanes<T>;
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const T* p = turned + head * d * sizes.padded;
        const T* m = dgram + head * d * d;
        const Product<T> product{{1, d, m, 1, 0, d, p, 0, sizes.padded},
                                 {1, d, m, d, 0, 1, p, 0, sizes.padded},
                                 d_turned + head * d * sizes.padded,
                                 sizes.padded,
                                 true};
        tiles<lanes, kVectors>(product, d, 0, sizes.padded);
    }
    int64_t at[lanes];
    for (int i = 0; i < lanes; ++i) {
        at[i] = i * channels;
    }
    for (int64_t cell = 0; cell < sizes.cells; cell += lanes) {
        turn_back<T>(d_turned + cell, sizes.padded, least(lanes, sizes.cells - cell), channels,
                     {dp + cell * channels, at});
    }
}

// The widest vector that fits in a row of channels; the last of a row overlaps the one before.
template <class T, int lanes = kLanes<T>>
void reduce(const SpatialSizes& sizes, Strip<const T> v, const T* weight, T bias, T* p) {
    const int64_t channels = sizes.channels();
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return reduce<T, lanes / 2>(sizes, v, weight, bias, p);
        }
    }
    for (int64_t cell = 0; cell < sizes.base_width; ++cell) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t column = least(c, channels - lanes);
            const T* from = v.data + cell * sizes.cell_width * v.token_stride + column;
            Vector<T, lanes> sum = {};
            const T* w = weight;
            for (int64_t y = 0; y < sizes.cell_height; ++y) {
                for (int64_t x = 0; x < sizes.cell_width; ++x) {
                    sum += *w++ * load<T, lanes>(from + y * v.row_stride + x * v.token_stride);
                }
            }
            store<T, lanes>(p + cell * channels + column, sum + bias);
        }
    }
}

template <class T, int lanes = kLanes<T>>
void backward_reduce(const SpatialSizes& sizes, Strip<const T> v, const T* weight, const T* dp,
                     Strip<T> dv, T* dweight) {
    const int64_t channels = sizes.channels();
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return backward_reduce<T, lanes / 2>(sizes, v, weight, dp, dv, dweight);
        }
    }
    // Lanes of the overlapping last vector that the vector before has not had.
    const int64_t whole = channels / lanes * lanes;
    Vector<T, lanes> fresh;
    for (int i = 0; i < lanes; ++i) {
        fresh[i] = T(channels - lanes + i >= whole);
    }
    for (int64_t y = 0; y < sizes.cell_height; ++y) {
        for (int64_t x = 0; x < sizes.cell_width; ++x) {
            const int64_t t = y * sizes.cell_width + x;
            Vector<T, lanes> sum = {};
            for (int64_t cell = 0; cell < sizes.base_width; ++cell) {
                const int64_t column = cell * sizes.cell_width + x;
                const T* from = v.data + y * v.row_stride + column * v.token_stride;
                T* to = dv.data + y * dv.row_stride + column * dv.token_stride;
                const T* d = dp + cell * channels;
                for (int64_t c = 0; c < whole; c += lanes) {
                    const Vector<T, lanes> vector = load<T, lanes>(d + c);
                    sum += load<T, lanes>(from + c) * vector;
                    store<T, lanes>(to + c, weight[t] * vector);
                }
                if (whole < channels) {
                    const int64_t c = channels - lanes;
                    const Vector<T, lanes> vector = load<T, lanes>(d + c);
                    sum += load<T, lanes>(from + c) * vector * fresh;
                    store<T, lanes>(to + c, weight[t] * vector);
                }
            }
            dweight[t] = sums_over_lanes<T, lanes, 1>(&sum)[0];
        }
    }
}

}  // namespace

extern const SpatialKernels<float> spatial_float32 = {kLanes<float>,
                                                      kVectors * kLanes<float>,
                                                      scratch<float>,
                                                      reduce<float>,
                                                      gram<float>,
                                                      apply<float>,
                                                      backward_tokens<float>,
                                                      backward_bias<float>,
                                                      backward_gram<float>,
                                                      backward_reduce<float>};
extern const SpatialKernels<double> spatial_float64 = {kLanes<double>,
                                                       kVectors * kLanes<double>,
                                                       scratch<double>,
                                                       reduce<double>,
                                                       gram<double>,
                                                       apply<double>,
                                                       backward_tokens<double>,
                                                       backward_bias<double>,
                                                       backward_gram<double>,
                                                       backward_reduce<double>};

}  // namespace c2d::C2D_ISA
