// HiT-SR's dual feature extraction (2407.05878) on the CPU, one instruction set at a time:
// expand(f(conv3x3(f(local(x))))) times linear(x), f a LeakyReLU.
//
// Idea. A tile is walked row by row: of the local branch only the three rows that the convolution
// sees exist, in a ring in cache, and neither branch ever reaches main memory. How features lie and
// why: ../common/tokens.h. In that layout a tap of the convolution is a product with a matrix of
// channels whose tokens are read shifted by one token.
//
// Costs, multiply-adds per pixel, of C channels and hidden local ones: C^2 + 2 C hidden + 9
// hidden^2. Bytes: 2 C.
//
// What was measured: two cores of an AMD EPYC (Zen 5, AVX-512) in a shared virtual machine,
// float32, 184 x 320 x 60, hidden 12, by the benchmarks: 4.2 ms, the reference 6.9 ms (1.7 times as
// long), torch.compile of it 6.8 ms. No prediction was written first.
#include "../common/tokens.h"
#include "dual_features.h"

namespace c2d::C2D_ISA {
namespace {

constexpr double kSlope = 0.2;         // of the LeakyReLU where x < 0
constexpr int64_t kReach = kSide / 2;  // of the convolution, to each side

// Scratch memory of a call, cut up. Rows of `inner` tokens are the tile's; those of the ring have a
// pixel more at both ends, and a vector more to read in.
template <class T, int lanes>
struct Scratch {
    int64_t inner, outer, ring_row;
    T *x, *ring, *local, *linear, *expanded;
    int64_t elements;

    Scratch(const DualSizes<T>& sizes, int64_t columns, T* memory)
        : inner(rounded_up(columns, lanes)),
          outer(rounded_up(columns + 2 * kReach, lanes)),
          ring_row(outer + lanes) {
        const int64_t C = sizes.channels, hidden = sizes.hidden;
        Cut<T> cut(memory);
        cut(x, (C + 1) * outer);
        cut(ring, kSide * hidden * ring_row);
        cut(local, (hidden + 1) * inner);
        cut(linear, C * inner);
        cut(expanded, C * inner);
        elements = cut.elements();
    }
};

// What the encoding adds to `rows` channels of row y, from column `first` on; `channel` is the
// first of them among all that it adds to.
template <class T, int lanes>
inline void add_place(const DualSizes<T>& sizes, const DualWeights<T>& weights, int64_t channel,
                      int64_t rows, int64_t y, int64_t first, int64_t count, int64_t stride,
                      T* to) {
    if (weights.by_row == nullptr) {
        return;
    }
    for (int64_t c = 0; c < rows; ++c) {
        const T row = weights.by_row[(channel + c) * sizes.height + y];
        const T* const column = weights.by_column + (channel + c) * sizes.width + first;
        T* const at = to + c * stride;
        for (int64_t n = 0; n < count; ++n) {
            at[n] += row + column[n];
        }
    }
}

template <class T, int lanes>
inline void leaky(int64_t elements, T* x) {
    for (int64_t i = 0; i < elements; i += lanes) {
        const Vector<T, lanes> value = load<T, lanes>(x + i);
        store<T, lanes>(x + i, value > T(0) ? value : value * T(kSlope));
    }
}

// Row y of the local branch up to the convolution, zero where there is no picture.
template <class T, int lanes>
inline void local_row(const DualSizes<T>& sizes, const DualWeights<T>& weights,
                      const RowTile<T>& tile, const Scratch<T, lanes>& s, int64_t y, T* to) {
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    const int64_t start = tile.left - kReach, end = tile.left + tile.columns + kReach;
    const int64_t first = start < 0 ? 0 : start, last = end < sizes.width ? end : sizes.width;
    for (int64_t i = 0; i < hidden * s.ring_row; i += lanes) {
        store<T, lanes>(to + i, Vector<T, lanes>{});
    }
    if (y < 0 || y >= sizes.height) {
        return;
    }
    const int64_t count = last - first, length = rounded_up(count, lanes);
    load_row<T, lanes>(tile, C, y, first, count, length, s.x);
    ones<T, lanes>(length, s.x + C * length);
    // Where the picture begins inside the row, the product is written one place further on; what it
    // computes past the picture's end is cleared again.
    T* const out = to + (first - start);
    product<T, lanes>({C + 1, weights.local, C + 1, 1, s.x, length, nullptr, out, s.ring_row},
                      hidden, length);
    add_place<T, lanes>(sizes, weights, 0, hidden, y, first, count, s.ring_row, out);
    for (int64_t c = 0; c < hidden; ++c) {
        T* const row = out + c * s.ring_row;
        leaky<T, lanes>(length, row);
        for (int64_t n = count; n < length; ++n) {
            row[n] = 0;
        }
    }
}

template <class T, int lanes>
inline void convolve(int64_t hidden, int64_t length, int64_t ring_row, const T* const* rows,
                     const DualWeights<T>& weights, T* out) {
    for (int64_t c = 0; c < hidden; ++c) {
        for (int64_t n = 0; n < length; n += lanes) {
            store<T, lanes>(out + c * length + n, Vector<T, lanes>{} + weights.conv_bias[c]);
        }
    }
    const T* weight = weights.conv;
    for (int64_t dy = 0; dy < kSide; ++dy) {
        for (int64_t dx = 0; dx < kSide; ++dx, weight += hidden * hidden) {
            product<T, lanes>(
                {hidden, weight, hidden, 1, rows[dy] + dx, ring_row, out, out, length}, hidden,
                length);
        }
    }
}

template <class T, int lanes>
void run(const DualSizes<T>& sizes, const DualWeights<T>& weights, const RowTile<T>& tile,
         T* scratch) {
    const Scratch<T, lanes> s(sizes, tile.columns, scratch);
    const int64_t C = sizes.channels, hidden = sizes.hidden, length = s.inner;
    const T* rows[kSide] = {};
    int64_t used = 0;
    for (int64_t y = tile.top - kReach; y < tile.top + tile.rows + kReach; ++y, ++used) {
        T* const row = s.ring + used % kSide * hidden * s.ring_row;
        local_row<T, lanes>(sizes, weights, tile, s, y, row);
        rows[0] = rows[1];
        rows[1] = rows[2];
        rows[2] = row;
        const int64_t target = y - kReach;
        if (target < tile.top) {
            continue;
        }
        convolve<T, lanes>(hidden, length, s.ring_row, rows, weights, s.local);
        leaky<T, lanes>(hidden * length, s.local);
        ones<T, lanes>(length, s.local + hidden * length);
        multiply<T, lanes>(C, hidden + 1, length, weights.expand, s.local, false, s.expanded);
        load_row<T, lanes>(tile, C, target, tile.left, tile.columns, length, s.x);
        ones<T, lanes>(length, s.x + C * length);
        multiply<T, lanes>(C, C + 1, length, weights.linear, s.x, false, s.linear);
        add_place<T, lanes>(sizes, weights, hidden, C, target, tile.left, tile.columns, length,
                            s.linear);
        for (int64_t i = 0; i < C * length; i += lanes) {
            store<T, lanes>(s.linear + i,
                            load<T, lanes>(s.linear + i) * load<T, lanes>(s.expanded + i));
        }
        store_row<T, lanes>(tile, C, target, s.linear, length);
    }
}

template <class T, int lanes>
int64_t scratch(const DualSizes<T>& sizes, int64_t columns) {
    return Scratch<T, lanes>(sizes, columns, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const DualKernels<float> dual_features_float32 = {kFloats, scratch<float, kFloats>,
                                                         run<float, kFloats>};
extern const DualKernels<double> dual_features_float64 = {kDoubles, scratch<double, kDoubles>,
                                                          run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
