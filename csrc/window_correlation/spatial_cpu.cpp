// Spatial correlation on the CPU, one instruction set at a time: HiT-SR's spatial self-correlation
// (2407.05878), out = (q p^T / d + P) p in each window and head.
#include "../common/simd.h"
#include "spatial_correlation.h"

namespace c2d::C2D_ISA {
namespace {

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// A register tile of rows x vectors sums and its operands fit the registers.
constexpr int kRows = 6;
constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;
constexpr int64_t kPart = 128;  // tokens turned at a time: q and out of them stay in cache

inline int64_t rounded_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// sum over i < outer, j < inner of
//   a[row * a_row + i * a_outer + j * a_inner] * b[i * b_outer + j * b_inner + column]
template <class T>
struct Sum {
    int64_t outer, inner;
    const T* a;
    int64_t a_row, a_outer, a_inner;
    const T* b;
    int64_t b_outer, b_inner;
};

template <class T, int lanes, int rows, int vectors>
inline __attribute__((always_inline)) void add(Vector<T, lanes> (&sum)[rows][vectors],
                                               const Sum<T>& s, int64_t row, int64_t column) {
    for (int64_t i = 0; i < s.outer; ++i) {
        const T* a = s.a + row * s.a_row + i * s.a_outer;
        const T* b = s.b + column + i * s.b_outer;
        for (int64_t j = 0; j < s.inner; ++j) {
            Vector<T, lanes> factor[vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                factor[v] = load<T, lanes>(b + v * lanes);
            }
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                const T scalar = a[r * s.a_row];
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    sum[r][v] += scalar * factor[v];
                }
            }
            a += s.a_inner;
            b += s.b_inner;
        }
    }
}

// out[row][column] = first + second, or added to what is there.
template <class T>
struct Product {
    Sum<T> first, second;
    T* out;
    int64_t out_row;
    bool added;

    template <int rows, int vectors>
    inline __attribute__((always_inline)) void tile(int64_t row, int64_t column) const {
        constexpr int lanes = kLanes<T>;
        Vector<T, lanes> sum[rows][vectors] = {};
        add<T, lanes, rows, vectors>(sum, first, row, column);
        add<T, lanes, rows, vectors>(sum, second, row, column);
        T* to = out + row * out_row + column;
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                T* at = to + r * out_row + v * lanes;
                store<T, lanes>(at, added ? load<T, lanes>(at) + sum[r][v] : sum[r][v]);
            }
        }
    }
};

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

// Tiles of `size` <= rows rows down from `row`, as many as fit; returns the row after them.
template <int vectors, int rows, class Task>
inline int64_t tiles_of_size(const Task& task, int64_t size, int64_t row, int64_t end,
                             int64_t column) {
    if constexpr (rows > 1) {
        if (size < rows) {
            return tiles_of_size<vectors, rows - 1>(task, size, row, end, column);
        }
    }
    for (; row + rows <= end; row += rows) {
        task.template tile<rows, vectors>(row, column);
    }
    return row;
}

// Covers rows x columns, columns a multiple of the vector, with tiles of about equal rows.
template <int lanes, int vectors, class Task>
inline void tiles(const Task& task, int64_t rows, int64_t column, int64_t columns) {
    const int64_t pieces = (rows + kRows - 1) / kRows, size = (rows + pieces - 1) / pieces;
    for (; column + vectors * lanes <= columns; column += vectors * lanes) {
        const int64_t row = tiles_of_size<vectors, kRows>(task, size, 0, rows, column);
        if (row < rows) {
            tiles_of_size<vectors, kRows>(task, rows - row, row, rows, column);
        }
    }
    if constexpr (vectors > 1) {
        if (column < columns) {
            tiles<lanes, vectors / 2>(task, rows, column, columns);
        }
    }
}

// out[r][c] (+)= scale * sum over n < count of a[r * row + n] * b[c * row + n], n along the lanes.
template <class T>
struct Dots {
    const T *a, *b;
    int64_t row, count, size;
    T scale;
    T* out;
    bool added;

    template <int rows, int columns>
    inline __attribute__((always_inline)) void tile(int64_t r0, int64_t c0) const {
        constexpr int lanes = kLanes<T>;
        Vector<T, lanes> sum[rows][columns] = {};
        for (int64_t n = 0; n < count; n += lanes) {
            Vector<T, lanes> factor[columns];
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                factor[c] = load<T, lanes>(b + (c0 + c) * row + n);
            }
#pragma GCC unroll 2
            for (int r = 0; r < rows; ++r) {
                const Vector<T, lanes> vector = load<T, lanes>(a + (r0 + r) * row + n);
#pragma GCC unroll 4
                for (int c = 0; c < columns; ++c) {
                    sum[r][c] += vector * factor[c];
                }
            }
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; ++r) {
            const Vector<T, lanes> sums = sums_over_lanes<T, lanes, columns>(sum[r]);
            T* to = out + (r0 + r) * size + c0;
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) {
                to[c] = (added ? to[c] : T(0)) + scale * sums[c];
            }
        }
    }

    void all() const {
        constexpr int columns = kLanes<T> < 4 ? kLanes<T> : 4;
        int64_t c = 0;
        for (; c + columns <= size; c += columns) {
            column_of_tiles<columns>(c);
        }
        for (; c < size; ++c) {
            column_of_tiles<1>(c);
        }
    }

    template <int columns>
    inline void column_of_tiles(int64_t c) const {
        int64_t r = 0;
        for (; r + 2 <= size; r += 2) {
            tile<2, columns>(r, c);
        }
        if (r < size) {
            tile<1, columns>(r, c);
        }
    }
};

// to[c * row + n] = token n's channel c; zeros for tokens from count to the end of a vector. Where
// channels are no multiple of the vector, the last vector of a token overlaps the one before.
template <class T, int lanes = kLanes<T>>
void turn(Tokens<const T> from, int64_t count, int64_t channels, T* to, int64_t row) {
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return turn<T, lanes / 2>(from, count, channels, to, row);
        }
    }
    const int64_t end = rounded_up(count, kLanes<T>);
    for (int64_t n = 0; n < end; n += lanes) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t column = least(c, channels - lanes);
            Vector<T, lanes> block[lanes] = {};
            if (n + lanes <= count) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i) {
                    block[i] = load<T, lanes>(from.data + from.at[n + i] + column);
                }
            } else {
                for (int i = 0; i < lanes && n + i < count; ++i) {
                    block[i] = load<T, lanes>(from.data + from.at[n + i] + column);
                }
            }
            transpose<T, lanes>(block);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                store<T, lanes>(to + (column + i) * row + n, block[i]);
            }
        }
    }
}

// The other way round: token n's channel c = from[c * row + n].
template <class T, int lanes = kLanes<T>>
void turn_back(const T* from, int64_t row, int64_t count, int64_t channels, Tokens<T> to) {
    if constexpr (lanes > 1) {
        if (channels < lanes) {
            return turn_back<T, lanes / 2>(from, row, count, channels, to);
        }
    }
    for (int64_t n = 0; n < count; n += lanes) {
        for (int64_t c = 0; c < channels; c += lanes) {
            const int64_t column = least(c, channels - lanes);
            Vector<T, lanes> block[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                block[i] = load<T, lanes>(from + (column + i) * row + n);
            }
            transpose<T, lanes>(block);
            if (n + lanes <= count) {
#pragma GCC unroll 16
                for (int i = 0; i < lanes; ++i) {
                    store<T, lanes>(to.data + to.at[n + i] + column, block[i]);
                }
            } else {
                for (int i = 0; i < lanes && n + i < count; ++i) {
                    store<T, lanes>(to.data + to.at[n + i] + column, block[i]);
                }
            }
        }
    }
}

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
