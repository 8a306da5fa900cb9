// The coordinate query on the CPU, one instruction set at a time: HIIF's decoder (2412.03748).
//
// Idea. The first LayerNorm and Linear see four weighted neighbours, a few numbers more: the
// products of the Linear with each pixel's features are made once per pixel, and a query only adds
// four of them. From there on a chunk of 64 queries passes through the whole decoder in cache,
// channels by queries: every LayerNorm, GELU and attention is then lane by lane, with no sum over
// lanes anywhere but in k^T v.
//
// The mean and the variance of the four weighted neighbours and the rest, z, come from each pixel's
// mean m and sum of squares about it, s: sum (z - mu)^2 = w^2 s + C (w m - mu)^2 + ..., in which
// nothing cancels. The linear attention is over all queries, so there are two passes for one
// attention: k^T v first, and once it is known, v's side of it, W_q and the Linear after it are one
// matrix.
//
// Costs per query at width C with one attention and three levels, after folding: 5 C^2
// multiply-adds in the first pass (a quarter of it k^T v's at most), 9 C^2 in the second; 64 rows
// in and out of the first-level cache per layer, no memory traffic but 4 table rows (shared by the
// queries of a pixel) and 3 numbers out.
#include "../common/simd.h"
#include "../common/vector_math.h"
#include "coordinate_query.h"

namespace c2d::C2D_ISA {
namespace {

constexpr int kPanel = kTileRows;

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
using V = Vector<T, kLanes<T>>;

inline int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

template <class T>
TableRow<T> table_row(int64_t width) {
    const int64_t product = round_up(width, kLanes<T>);
    const int64_t products = kNeighbours * product;
    return {round_up(products + 2, kLanes<T>), product, products, products + 1};
}

template <class T>
int64_t pack(const T* matrix, int64_t outputs, int64_t inputs, T* panels) {
    const int64_t padded = round_up(outputs, kPanel);
    for (int64_t j = 0; panels != nullptr && j < padded; ++j) {
        for (int64_t k = 0; k < inputs; ++k) {
            panels[(j / kPanel * inputs + k) * kPanel + j % kPanel] =
                j < outputs ? matrix[j * inputs + k] : T(0);
        }
    }
    return padded * inputs;
}

// What becomes of a Linear's output y.
enum class Then { nothing, gelu, add };

// to[outputs][kChunk] = then(matrix from[inputs][kChunk] + bias); Then::add adds `to`'s old values.
template <class T, Then then>
void dense(const Dense<T>& layer, int64_t columns, const T* from, T* to) {
    constexpr int lanes = kLanes<T>;
    for (int64_t row = 0; row < layer.outputs; row += kPanel) {
        const T* panel = layer.matrix + row * layer.inputs;
        const int64_t rows = layer.outputs - row < kPanel ? layer.outputs - row : kPanel;
        for (int64_t column = 0; column < columns; column += 2 * lanes) {
            V<T> sum[kPanel][2] = {};
            const T *a = panel, *b = from + column;
            for (int64_t k = 0; k < layer.inputs; ++k, a += kPanel, b += kChunk) {
                const V<T> left = load<T, lanes>(b), right = load<T, lanes>(b + lanes);
#pragma GCC unroll 8
                for (int r = 0; r < kPanel; ++r) {
                    sum[r][0] += a[r] * left;
                    sum[r][1] += a[r] * right;
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < kPanel; ++r) {
                if (r < rows) {
                    T* out = to + (row + r) * kChunk + column;
#pragma GCC unroll 2
                    for (int half = 0; half < 2; ++half) {
                        V<T> y = sum[r][half] + layer.bias[row + r];
                        if constexpr (then == Then::add) {
                            y += load<T, lanes>(out + half * lanes);
                        }
                        store<T, lanes>(out + half * lanes, y);
                    }
                }
            }
        }
        if constexpr (then == Then::gelu) {
            for (int64_t r = row; r < row + rows; ++r) {
                for (int64_t column = 0; column < columns; column += lanes) {
                    T* out = to + r * kChunk + column;
                    store<T, lanes>(out, gelu_of(load<T, lanes>(out)));
                }
            }
        }
    }
}

// Normalises `rows` rows over themselves, query by query; with a gain and a bias per row unless
// null.
template <class T>
void normalise(int64_t rows, int64_t columns, const T* gain, const T* bias, T* data) {
    constexpr int lanes = kLanes<T>;
    for (int64_t column = 0; column < columns; column += lanes) {
        V<T> mean = {}, variance = {};
        for (int64_t r = 0; r < rows; ++r) {
            mean += load<T, lanes>(data + r * kChunk + column);
        }
        mean /= T(rows);
        for (int64_t r = 0; r < rows; ++r) {
            const V<T> centred = load<T, lanes>(data + r * kChunk + column) - mean;
            variance += centred * centred;
        }
        const V<T> scale = T(1) / sqrt_of(variance / T(rows) + T(kNormEpsilon));
        for (int64_t r = 0; r < rows; ++r) {
            T* at = data + r * kChunk + column;
            V<T> y = (load<T, lanes>(at) - mean) * scale;
            if (gain != nullptr) {
                y = y * gain[r] + bias[r];
            }
            store<T, lanes>(at, y);
        }
    }
}

template <class T>
void table(const QueryDecoder<T>& decoder, const T* features, int64_t stride, int64_t count,
           T* rows) {
    constexpr int lanes = kLanes<T>;
    const int64_t width = decoder.width;
    const TableRow<T> layout = table_row<T>(width);
    alignas(64) T channels[kMostWidth * kChunk];
    alignas(64) T products[kMostWidth * kChunk];
    for (int64_t first = 0; first < count; first += kChunk) {
        const int64_t pixels = count - first < kChunk ? count - first : kChunk;
        const int64_t columns = round_up(pixels, 2 * lanes);
        for (int64_t c = 0; c < width; ++c) {
            for (int64_t p = 0; p < columns; ++p) {
                channels[c * kChunk + p] = p < pixels ? features[(first + p) * stride + c] : T(0);
            }
        }
        for (int64_t p = 0; p < pixels; ++p) {
            const T* pixel = features + (first + p) * stride;
            T* row = rows + (first + p) * layout.stride;
            T mean = 0, squares = 0;
            for (int64_t c = 0; c < width; ++c) {
                mean += pixel[c];
            }
            mean /= T(width);
            for (int64_t c = 0; c < width; ++c) {
                squares += (pixel[c] - mean) * (pixel[c] - mean);
            }
            row[layout.mean] = mean;
            row[layout.squares] = squares;
        }
        for (int64_t tap = 0; tap < kNeighbours; ++tap) {
            const int64_t panels = round_up(width, kPanel) * width;
            const Dense<T> part = {decoder.taps.matrix + tap * panels, decoder.taps.bias, width,
                                   width};
            dense<T, Then::nothing>(part, columns, channels, products);
            for (int64_t p = 0; p < pixels; ++p) {
                T* row = rows + (first + p) * layout.stride + tap * layout.product_stride;
                for (int64_t c = 0; c < layout.product_stride; ++c) {
                    row[c] = c < width ? products[c * kChunk + p] : T(0);
                }
            }
        }
    }
}

// The output of the first fc1 and its GELU: hidden[width][kChunk].
template <class T>
void first_layer(const QueryDecoder<T>& decoder, const QueryChunk<T>& chunk, int64_t columns,
                 T* hidden) {
    constexpr int lanes = kLanes<T>;
    const int64_t width = decoder.width;
    const TableRow<T> layout = table_row<T>(width);
    alignas(64) T mean[kChunk], scale[kChunk];
    alignas(64) T tile[lanes * lanes];
    const T n = T(kNeighbours * width + kExtras);
    for (int64_t q = 0; q < columns; ++q) {
        T sum = 0, squares = 0, weighted[kNeighbours], extra[kExtras];
        for (int e = 0; e < kExtras; ++e) {
            extra[e] = chunk.extra[e * kChunk + q];
            sum += extra[e];
        }
        for (int tap = 0; tap < kNeighbours; ++tap) {
            const T* row = chunk.table + chunk.row[tap * kChunk + q] * layout.stride;
            const T w = chunk.weight[tap * kChunk + q];
            weighted[tap] = w * row[layout.mean];
            sum += weighted[tap] * T(width);
            squares += w * w * row[layout.squares];
        }
        const T mu = sum / n;
        static_assert(kNeighbours == kExtras);
        for (int i = 0; i < kNeighbours; ++i) {
            squares += T(width) * (weighted[i] - mu) * (weighted[i] - mu);
            squares += (extra[i] - mu) * (extra[i] - mu);
        }
        mean[q] = mu;
        scale[q] = squares / n + T(kNormEpsilon);
    }
    for (int64_t q = 0; q < columns; q += lanes) {
        store<T, lanes>(scale + q, T(1) / sqrt_of(load<T, lanes>(scale + q)));
    }
    for (int64_t q = 0; q < columns; q += lanes) {
        for (int64_t c = 0; c < width; c += lanes) {
            V<T> rows[lanes];
            for (int i = 0; i < lanes; ++i) {
                V<T> sum = {};
#pragma GCC unroll 4
                for (int tap = 0; tap < kNeighbours; ++tap) {
                    const int64_t place = tap * kChunk + q + i;
                    sum += chunk.weight[place] *
                           load<T, lanes>(chunk.table + chunk.row[place] * layout.stride +
                                          tap * layout.product_stride + c);
                }
                store<T, lanes>(tile + i * lanes, sum);
            }
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                rows[i] = load<T, lanes>(tile + i * lanes);
            }
            transpose<T, lanes>(rows);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                store<T, lanes>(tile + i * lanes, rows[i]);
            }
            const int64_t present = width - c < lanes ? width - c : lanes;
            const V<T> mu = load<T, lanes>(mean + q), inverse = load<T, lanes>(scale + q);
            for (int64_t i = 0; i < present; ++i) {
                V<T> y = load<T, lanes>(tile + i * lanes) - mu * decoder.row_sums[c + i];
#pragma GCC unroll 4
                for (int e = 0; e < kExtras; ++e) {
                    y += decoder.extras[(c + i) * kExtras + e] *
                         load<T, lanes>(chunk.extra + e * kChunk + q);
                }
                y = y * inverse + decoder.bias[c + i];
                store<T, lanes>(hidden + (c + i) * kChunk + q, gelu_of(y));
            }
        }
    }
}

constexpr int64_t kMostRows = 2 * kMostWidth + kCoordinates;  // k and v, or features and digits

// Buffers of a chunk on its way, channels by queries.
template <class T>
struct Buffers {
    alignas(64) T hidden[kMostRows * kChunk];
    alignas(64) T inner[kMostRows * kChunk];
};

// Levels 0..stop with the attentions between them: the output of level `stop` is in `hidden`.
template <class T>
void levels(const QueryDecoder<T>& decoder, const QueryChunk<T>& chunk, int64_t columns,
            int64_t stop, Buffers<T>& buffers) {
    const int64_t width = decoder.width;
    for (int64_t l = 0; l <= stop; ++l) {
        const QueryLevel<T>& level = decoder.level[l];
        if (l == 0) {
            first_layer(decoder, chunk, columns, buffers.inner);
        } else {
            __builtin_memcpy(buffers.hidden + width * kChunk, chunk.extra + digits_at(l) * kChunk,
                             kCoordinates * kChunk * sizeof(T));
            normalise<T>(width + kCoordinates, columns, nullptr, nullptr, buffers.hidden);
            dense<T, Then::gelu>(level.fc1, columns, buffers.hidden, buffers.inner);
        }
        dense<T, Then::nothing>(level.fc2, columns, buffers.inner, buffers.hidden);
        if (l < stop && l < decoder.attentions) {
            dense<T, Then::gelu>(chunk.fold[l], columns, buffers.hidden, buffers.inner);
            dense<T, Then::add>(decoder.attention[l].proj2, columns, buffers.inner, buffers.hidden);
        }
    }
}

template <class T>
void decode(const QueryDecoder<T>& decoder, const QueryChunk<T>& chunk, T* values) {
    Buffers<T> buffers;
    const int64_t columns = round_up(chunk.count, 2 * kLanes<T>);
    levels(decoder, chunk, columns, decoder.levels - 1, buffers);
    __builtin_memcpy(values, buffers.hidden, 3 * kChunk * sizeof(T));
}

constexpr int kSide = 4;  // of a register tile of moments

// moment[i][j] += sum over the chunk of k[i] v[j], for `rows` i and `columns` j.
template <class T, int rows, int columns>
inline __attribute__((always_inline)) void products(const T* k, const T* v, int64_t queries,
                                                    int64_t d, double* moment) {
    constexpr int lanes = kLanes<T>;
    V<T> sum[rows * columns] = {};
    for (int64_t q = 0; q < queries; q += lanes) {
        V<T> right[columns];
#pragma GCC unroll 4
        for (int j = 0; j < columns; ++j) {
            right[j] = load<T, lanes>(v + j * kChunk + q);
        }
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) {
            const V<T> left = load<T, lanes>(k + i * kChunk + q);
#pragma GCC unroll 4
            for (int j = 0; j < columns; ++j) {
                sum[i * columns + j] += left * right[j];
            }
        }
    }
    constexpr int together = rows * columns < lanes ? rows * columns : lanes;
#pragma GCC unroll 16
    for (int i = 0; i < rows * columns; i += together) {
        const V<T> sums = sums_over_lanes<T, lanes, together>(sum + i);
        for (int n = 0; n < together; ++n) {
            moment[(i + n) / columns * d + (i + n) % columns] += sums[n];
        }
    }
}

template <class T>
void moments(const QueryDecoder<T>& decoder, const QueryChunk<T>& chunk, int64_t stop,
             double* sums) {
    Buffers<T> buffers;
    const int64_t width = decoder.width, d = width / decoder.heads;
    const int64_t columns = round_up(chunk.count, 2 * kLanes<T>);
    const QueryAttention<T>& attention = decoder.attention[stop];
    levels(decoder, chunk, columns, stop, buffers);
    dense<T, Then::nothing>(attention.key_value, columns, buffers.hidden, buffers.inner);
    for (int64_t head = 0; head < decoder.heads; ++head) {
        T* k = buffers.inner + head * d * kChunk;
        T* v = k + width * kChunk;
        normalise<T>(d, columns, attention.key_gain, attention.key_bias, k);
        normalise<T>(d, columns, attention.value_gain, attention.value_bias, v);
        for (int64_t i = 0; i < d; ++i) {
            for (int64_t q = chunk.count; q < columns; ++q) {
                k[i * kChunk + q] = 0;  // no query there
            }
        }
        double* moment = sums + head * d * d;
        for (int64_t i = 0; i < d; i += kSide) {
            for (int64_t j = 0; j < d; j += kSide) {
                if (i + kSide <= d && j + kSide <= d) {
                    products<T, kSide, kSide>(k + i * kChunk, v + j * kChunk, columns, d,
                                              moment + i * d + j);
                    continue;
                }
                for (int64_t a = i; a < d && a < i + kSide; ++a) {
                    for (int64_t b = j; b < d && b < j + kSide; ++b) {
                        products<T, 1, 1>(k + a * kChunk, v + b * kChunk, columns, d,
                                          moment + a * d + b);
                    }
                }
            }
        }
    }
}

template <class T>
constexpr QueryKernels<T> kKernels = {kLanes<T>, kPanel,     table_row<T>, pack<T>,
                                      table<T>,  moments<T>, decode<T>};

}  // namespace

extern const QueryKernels<float> query_float32 = kKernels<float>;
extern const QueryKernels<double> query_float64 = kKernels<double>;

}  // namespace c2d::C2D_ISA
