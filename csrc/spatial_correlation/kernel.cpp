// Spatial correlation on the CPU, one instruction set at a time: HiT-SR's spatial self-correlation
// (2407.05878), out = (q p^T / d + P) p in each window and head, as q (p^T p / d) + P p.
//
// Idea. Nearly all work is P p, cells x C multiply-adds per token: 1920 in HiT-SIR. Tokens lie
// along the lanes. For one cell the bias of consecutive tokens is consecutive in memory, so the
// tile is d channels x 4 vectors of tokens (d = 5: 20 of 32 registers) to which each cell adds the
// outer product of its d numbers and 4 vectors of P; nothing is padded along d. P is never made: it
// is read from the averaged table, as it is where a tile stays in a row of the window, else from
// one copy per column of cells, in which the rows of a window follow each other (BiasOfTokens).
// Backward has cells along the lanes, from a layout where the cells of a token are consecutive:
// P^T grad sums over tokens into registers, and grad p^T keeps p in registers and adds to the
// gradient of that layout, which becomes the table's once in 8 windows. q, grad and the results are
// transposed in registers, 128 tokens at a time.
//
// Costs, multiply-adds per token with n tokens a window and K cells (K C is 1920 in HiT-SIR):
//   forward   K C + d C + C + K d C / n
//   backward  2 K C + 2 d C + 2 C + 2 K d C / n, after p and p^T p as in forward
//
// What was predicted for float32 with AVX-512, from two multiply-adds of a vector a cycle at 3 GHz:
// forward 60 cycles for P p, 16 to transpose q and the output, 5 for q p^T p: 27 ns a token.
// Backward twice P p, three maps to transpose: 55 ns. What was measured for K = 64, d = 5, 6 heads,
// tokens in cache, one thread, least of 50 runs (an AMD EPYC core in a shared virtual machine):
//   ns a token, window 8; 16; 32; 64      AVX-512            AVX2               SSE2
//   forward, q p^T p + P p                22; 22; 26; 24     45; 45; 45; 47     103; 102; 102; 105
//   backward, P^T grad and grad p^T       35; 36; 35; 39     66; 65; 65; 74     181; 189; 182; 194
//   backward, dq and q^T grad             13; 13; 12; 15     25; 25; 25; 26     29; 28; 28; 29
// which is 145-177 GFLOP/s in the forward with AVX-512. A map that is not in cache costs as much
// again: whole calls, 2 threads, float32, AVX-512, median of 21 (9 in the first row), in turn with
// the reference and with the formula as written (the N x K map of each head, its bias gathered from
// the averaged table):
//                                          ms    ratio to reference, to the formula
//   forward, 192 x 320 x 30, window 8      3.8               18              31
//     window 16; 32; 64                    2.5; 2.5; 2.8     23; 21; 20      47; 45; 41
//   forward and backward, 8 x 64 x 64 x 30,
//     window 8; 16; 32; 64                 5.4; 4.4; 4.6; 6.2     12; 14; 13; 11
//
// What was tried:
//   The copies per column of cells for a window of 64 too, instead of the averaged table itself. No
//     prediction; 1.2-1.5 times the time (AVX-512, AVX2): 245 KB a head leave the first cache.
//   q (p^T p) summed before P p. Up to 3.4 times the formula's rounding error.
//   The bias gradient summed over 32 windows in float32, products of a token added one by one. Up
//     to 3.1 times the formula's error; now a token's d products are one number, and 8 windows.
//   At a window of 8, where windows are done one after another: several side by side, whose rows
//     are long in memory, 0.9 of the time and kept; instead, v of the next window prefetched, 0.8
//     to 0.9 too, not kept.
// Known and left: at a window of 8 the map is read in short rows and the calls wait for memory.
#include "tiles.h"

namespace c2d::C2D_ISA {
namespace {

constexpr int64_t kPart = 128;  // tokens transposed at a time: q and out of them stay in cache

// dbias[token][cell] += sum over channels of grad[token][channel] * transposed[channel][cell]; rows
// are channels, columns cells, and the factors of a tile stay in registers for all tokens.
template <class T>
struct Outer {
    const SpatialSizes& sizes;
    Strip<const T> grad;
    const T* transposed;
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
                    load<T, lanes>(transposed + (row + r) * sizes.padded + column + v * lanes);
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
void gram(const SpatialSizes& sizes, const T* p, T* transposed, T* gram) {
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    constexpr int lanes = kLanes<T>;
    int64_t at[lanes];
    for (int i = 0; i < lanes; ++i) {
        at[i] = i * channels;
    }
    for (int64_t cell = 0; cell < sizes.cells; cell += lanes) {
        gather_tokens<T>({p + cell * channels, at}, least(lanes, sizes.cells - cell), channels,
                         transposed + cell, sizes.padded);
    }
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const T* of_head = transposed + head * d * sizes.padded;
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
           const T* gram, const T* transposed, const TokenBias<T>& bias, Tokens<T> out,
           T* scratch) {
    constexpr int64_t block = kVectors * kLanes<T>;
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    T *q_transposed = scratch, *out_transposed = scratch + channels * kPart;
    for (int64_t start = first; start < first + count; start += kPart) {
        const int64_t tokens = least(kPart, first + count - start);
        gather_tokens<T>({q.data, q.at + start}, tokens, channels, q_transposed, kPart);
        for (int64_t head = 0; head < sizes.heads; ++head) {
            for (int64_t n = 0; n < tokens; n += block) {
                const int64_t token = start + n;
                const int64_t place =
                    head * bias.head + token / sizes.width * bias.row + token % sizes.width;
                const Product<T> product{
                    {sizes.base_height, sizes.base_width, transposed + head * d * sizes.padded,
                     sizes.padded, sizes.base_width, 1, bias.data + place, bias.down, bias.right},
                    {1, d, gram + head * d * d, 1, 0, d, q_transposed + head * d * kPart + n, 0,
                     kPart},
                    out_transposed + head * d * kPart + n,
                    kPart,
                    false};
                const int64_t columns = least(block, rounded_up(tokens - n, kLanes<T>));
                tiles<kLanes<T>, kVectors>(product, d, 0, columns);
            }
        }
        scatter_tokens<T>(out_transposed, kPart, tokens, channels, {out.data, out.at + start});
    }
}

template <class T>
void backward_tokens(const SpatialSizes& sizes, int64_t first, int64_t count, Tokens<const T> q,
                     Tokens<const T> grad, const T* gram, Tokens<T> dq, T* dgram, T* scratch) {
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    T *q_transposed = scratch, *grad_transposed = scratch + channels * kPart,
      *dq_transposed = scratch + 2 * channels * kPart;
    for (int64_t start = first; start < first + count; start += kPart) {
        const int64_t tokens = least(kPart, first + count - start);
        const int64_t columns = rounded_up(tokens, kLanes<T>);
        gather_tokens<T>({q.data, q.at + start}, tokens, channels, q_transposed, kPart);
        gather_tokens<T>({grad.data, grad.at + start}, tokens, channels, grad_transposed, kPart);
        for (int64_t head = 0; head < sizes.heads; ++head) {
            const int64_t at = head * d * kPart;
            Dots<T>{q_transposed + at, grad_transposed + at, kPart,        columns, d,
                    T(1) / T(d),       dgram + head * d * d, start > first}
                .all();
            const Product<T> product{
                {1, d, gram + head * d * d, 1, 0, d, grad_transposed + at, 0, kPart},
                {},
                dq_transposed + at,
                kPart,
                false};
            tiles<kLanes<T>, kVectors>(product, d, 0, columns);
        }
        scatter_tokens<T>(dq_transposed, kPart, tokens, channels, {dq.data, dq.at + start});
    }
}

template <class T>
void backward_bias(const SpatialSizes& sizes, Strip<const T> grad, const T* transposed,
                   CellBias<const T> bias, T* d_transposed, CellBias<T> dbias) {
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
            d_transposed,
            sizes.padded,
            y > 0};
        tiles<lanes, kVectors>(product, sizes.head_dim, 0, sizes.padded);
    }
    tiles<lanes, kVectors>(Outer<T>{sizes, grad, transposed, dbias}, sizes.head_dim, 0,
                           sizes.padded);
}

template <class T>
void backward_gram(const SpatialSizes& sizes, const T* transposed, const T* dgram, T* d_transposed,
                   T* dp) {
    constexpr int lanes = kLanes<T>;
    const int64_t channels = sizes.channels(), d = sizes.head_dim;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const T* p = transposed + head * d * sizes.padded;
        const T* m = dgram + head * d * d;
        const Product<T> product{{1, d, m, 1, 0, d, p, 0, sizes.padded},
                                 {1, d, m, d, 0, 1, p, 0, sizes.padded},
                                 d_transposed + head * d * sizes.padded,
                                 sizes.padded,
                                 true};
        tiles<lanes, kVectors>(product, d, 0, sizes.padded);
    }
    int64_t at[lanes];
    for (int i = 0; i < lanes; ++i) {
        at[i] = i * channels;
    }
    for (int64_t cell = 0; cell < sizes.cells; cell += lanes) {
        scatter_tokens<T>(d_transposed + cell, sizes.padded, least(lanes, sizes.cells - cell),
                          channels, {dp + cell * channels, at});
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
