// SRFormer's feed-forward (2303.09735) on the CPU, one instruction set at a time, with the norm and
// the skip around it: h = GELU(fc1(x)), y = x + fc2(h + GELU(depthwise(h))), and LN before fc1 or
// after fc2.
//
// Idea. A tile is walked row by row. Of the hidden features, the widest map there is, only the five
// rows that the convolution sees exist, in a ring that stays in the second level of cache; each row
// goes on to the result at once. How features lie and why: ../common/tokens.h. In that layout a tap
// of the depthwise convolution is a scalar times the row's tokens, read so many places further on.
//
// Costs, multiply-adds a pixel: 2 C hidden + 25 hidden, and h again for two pixels around a tile.
// Bytes: 2 C.
//
// What was measured: two cores of an AMD EPYC (Zen 5, AVX-512) in a shared virtual machine,
// float32, 184 x 320 x 60, hidden 120, by the benchmarks: 10.5 ms, the reference 26.5 ms (2.4 times
// as long), torch.compile of it 51 ms. Predicted for the convolution alone: 3.3 ms, of the 13.8 ms
// that it takes in torch; not timed alone. With convolve_row, which fetches a weight once for four
// vectors, and on one thread of a Xeon (family 6, model 207), 64 x 64 patches: 1.7 to 1.9 times as
// fast as the reference, 1.5 before; 1.8 was predicted.
#include "conv_ffn.h"
#include "convolve.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up. Rows of `inner` tokens are the tile's; those of the ring have
// two pixels more at both ends, and a vector more to read in.
template <class T, int lanes>
struct Scratch {
    int64_t inner, outer, ring_row;
    T *x, *norm, *ring, *wide, *mixed;
    int64_t elements = 0;

    Scratch(const ConvFfnSizes<T>& sizes, int64_t columns, T* memory)
        : inner(rounded_up(columns, lanes)),
          outer(rounded_up(columns + 2 * kReach, lanes)),
          ring_row(outer + lanes) {
        const int64_t C = sizes.channels, hidden = sizes.hidden;
        T** const parts[] = {&x, &norm, &ring, &wide, &mixed};
        const int64_t counts[] = {(C + 1) * outer, (C + 1) * outer, kKernel * hidden * ring_row,
                                  (hidden + 1) * inner, C * inner};
        for (int i = 0; i < 5; ++i) {
            *parts[i] = memory == nullptr ? nullptr : memory + elements;
            elements += counts[i];
        }
    }
};

struct Gelu {
    template <class V>
    V operator()(V x) const {
        return gelu_of(x);
    }
};

// Row y of the hidden features, zero where there is no picture.
template <class T, int lanes>
inline void hidden_row(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T>& weights,
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
    T* input = s.x;
    if (sizes.norm_first) {
        input = s.norm;
        normalise<T, lanes>(C, length, sizes.eps, s.x, input);
    }
    ones<T, lanes>(length, input + C * length);
    // Where the picture begins inside the row, the product is written that much further on; what it
    // computes past the picture's end is cleared again.
    T* const out = to + (first - start);
    product<T, lanes>({C + 1, weights.first, C + 1, 1, input, length, nullptr, out, s.ring_row},
                      hidden, length);
    activate_row<T, lanes>(hidden, count, length, s.ring_row, out, Gelu());
}

template <class T, int lanes>
void run(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T>& weights, const RowTile<T>& tile,
         T* scratch) {
    const Scratch<T, lanes> s(sizes, tile.columns, scratch);
    const int64_t C = sizes.channels, hidden = sizes.hidden, length = s.inner;
    const int64_t end = tile.top + tile.rows + kReach;
    const T* rows[kKernel] = {};
    int64_t used = 0;
    for (int64_t y = tile.top - kReach; y < end; ++y, ++used) {
        T* const row = s.ring + used % kKernel * hidden * s.ring_row;
        hidden_row<T, lanes>(sizes, weights, tile, s, y, row);
        for (int64_t i = 1; i < kKernel; ++i) {
            rows[i - 1] = rows[i];
        }
        rows[kKernel - 1] = row;
        const int64_t target = y - kReach;
        if (target < tile.top) {
            continue;
        }
        convolve<T, lanes>(hidden, length, s.ring_row, rows, weights.conv, s.wide, Gelu());
        ones<T, lanes>(length, s.wide + hidden * length);
        load_row<T, lanes>(tile, C, target, tile.left, tile.columns, length, s.x);
        multiply<T, lanes>(C, hidden + 1, length, weights.second, s.wide, sizes.norm_first,
                           sizes.norm_first ? s.x : s.mixed);
        if (!sizes.norm_first) {
            add_normalised<T, lanes>(C, length, sizes.eps, s.mixed, weights.norm, weights.norm + C,
                                     s.x);
        }
        store_row<T, lanes>(tile, C, target, s.x, length);
    }
}

template <class T, int lanes>
int64_t scratch(const ConvFfnSizes<T>& sizes, int64_t columns) {
    return Scratch<T, lanes>(sizes, columns, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const ConvFfnKernels<float> conv_ffn_float32 = {kFloats, scratch<float, kFloats>,
                                                       run<float, kFloats>};
extern const ConvFfnKernels<double> conv_ffn_float64 = {kDoubles, scratch<double, kDoubles>,
                                                        run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
