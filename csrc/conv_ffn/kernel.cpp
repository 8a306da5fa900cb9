// SRFormer's feed-forward (2303.09735) on the CPU, one instruction set at a time, with the norm and
// the skip around it: h = GELU(fc1(x)), y = x + fc2(h + GELU(depthwise(h))), and LN before fc1 or
// after fc2.
//
// Idea. A tile is walked some rows at a time. Of the hidden features, the widest map there is, only
// the rows that the convolution sees exist, in a ring that stays in the second level of cache
// (ring.h); they go on to the result at once. How features lie and why: ../common/tokens.h. In that
// layout a tap of the depthwise convolution is a scalar times the row's tokens, read shifted by
// that many tokens.
//
// Costs, multiply-adds per pixel: 2 C hidden + 25 hidden, and h again for two pixels around a tile.
// Bytes: 2 C.
//
// What was measured: one thread of a Xeon (family 6, model 207; AVX-512) in a shared virtual
// machine, float32, 192 x 320 x 60, hidden 120, old and new kernel in turn in one process, least
// times. First 32.7 ms; parts left out in turn: products 11.6, convolution 7.3 without its GELU,
// GELU 5.7, writing the result 3.0, zeros in the ring 0.7, reading x again 0.4, the norm 0.4.
//                                                     predicted   measured (ms)
//   GELU without a division (normal_share.h)             29.8     30.7
//   four rows at once, no `wide`, zeros at edges only    25.5     27.7
//   rows spread over the sets of the cache                        27.2
//   vectors of taps kept in registers                             26.4
//   x and the result fetched ahead, channel by channel   22.5     23.6
//   tiles as tall as the threads allow (row_tiles.h)     22.7     22.3
// That is 1.47 times as fast, through the operator too (33.2 and 22.7 ms; on two threads 17.0 and
// 11.6), and 4 x 64 x 64 patches 1.34 times. gcc read a vector from memory again for each row until
// it was kept in a register: the convolution then takes about 3.3 ms, where its multiply-adds alone
// are 2.2. Products run at 83 % of the machine's 176 GFLOP/s. AVX2 1.19 times (patches 1.09),
// baseline 1.07 times (1.03); there two rows of three vectors at once were better than two of four
// (1.09; 0.98) and four of two (1.11; 1.0).
// Without effect: fetching ahead within the ring (2 % slower), fetching x all in one go (0 %; the
// result: 2 %), other distances between the ring's rows. Not tried: keeping x for the skip, at most
// 2 %.
#include "conv_ffn.h"
#include "ring.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up.
template <class T, int lanes>
struct Scratch {
    RingSizes<T, lanes> rows;
    T *x, *norm, *ring, *mixed;
    int64_t elements;

    Scratch(const ConvFfnSizes<T>& sizes, int64_t columns, T* memory)
        : rows(sizes.hidden, columns) {
        const int64_t C = sizes.channels;
        Cut<T> cut(memory);
        cut(x, (C + 1) * rows.outer);
        cut(norm, (C + 1) * rows.outer);
        cut(ring, rows.elements());
        cut(mixed, C * rows.inner);
        elements = cut.elements();
    }
};

struct Gelu {
    template <class V>
    inline __attribute__((always_inline)) V operator()(V x) const {
        return gelu_of(x);
    }
};

template <class T, int lanes>
struct Walk {
    const ConvFfnSizes<T>& sizes;
    const ConvFfnWeights<T>& weights;
    const RowTile<T>& tile;
    const Scratch<T, lanes> s;
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    const Ring<T, lanes, T> ring{sizes, tile, s.rows, s.ring};

    // Row y of the hidden features.
    void hidden_row(int64_t y, T* to) const {
        const int64_t length = rounded_up(ring.count, lanes), row = s.rows.row;
        load_row<T, lanes>(tile, C, y, ring.first, ring.count, length, s.x);
        T* input = s.x;
        if (sizes.norm_first) {
            input = s.norm;
            normalise<T, lanes>(C, length, sizes.eps, s.x, input);
        }
        ones<T, lanes>(length, input + C * length);
        product<T, lanes>({C + 1, weights.first, C + 1, 1, input, length, nullptr, to, row}, hidden,
                          length);
        activate_row<T, lanes>(hidden, length, row, to, Gelu());
    }

    // Row y of the result.
    void out_row(int64_t y) const {
        const int64_t length = s.rows.inner;
        T* const out = sizes.norm_first ? s.x : s.mixed;
        load_row<T, lanes>(tile, C, y, tile.left, tile.columns, length, s.x);
        product<T, lanes>({hidden + 1, weights.second, hidden + 1, 1, ring.wide(y), s.rows.row,
                           sizes.norm_first ? out : nullptr, out, length},
                          C, length);
        if (!sizes.norm_first) {
            add_normalised<T, lanes>(C, length, sizes.eps, s.mixed, weights.norm, weights.norm + C,
                                     s.x);
        }
        store_row<T, lanes>(tile, C, y, s.x, length);
    }
};

template <class T, int lanes>
void run(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T>& weights, const RowTile<T>& tile,
         T* scratch) {
    const Walk<T, lanes> walk{sizes, weights, tile, {sizes, tile.columns, scratch}};
    walk.ring.walk(
        weights.conv, Gelu(), [&](int64_t y, T* to) { walk.hidden_row(y, to); },
        [&](int64_t y) { walk.out_row(y); });
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
