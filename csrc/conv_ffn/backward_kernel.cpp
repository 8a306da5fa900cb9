// The backward of SRFormer's feed-forward (2303.09735) on the CPU, one instruction set at a time.
//
// With p = fc1(x), h = GELU(p), a = depthwise(h), w = h + GELU(a), y = x + fc2(w), and g the
// gradient of fc2's result, that of y through the norm if it comes last:
//   dw = fc2^T g,  da = dw GELU'(a),  dp = (dw + depthwise^T da) GELU'(p),  dx = dy + fc1^T dp,
// through the norm if it comes first; dfc2 = g w^T and dfc1 = dp x^T, summed over tokens, and a tap
// of ddepthwise is the sum of da times h shifted by that many tokens.
//
// Idea. Nothing is kept from the forward. A tile is walked row by row as there (kernel.cpp), in the
// same layout: a row of h is made four rows ahead, with the slope of its GELU; five of them give a
// row of da two rows ahead; five of those give a row of dx. Each is a ring in the second level of
// cache, and main memory sees x, dy and dx only. Weights' gradients are summed in scratch memory,
// those of the convolution lane by lane.
//
// Costs, multiply-adds per pixel: C hidden for each of fc1 again, dw, dx, dfc1 and dfc2, and of fc2
// again if the norm comes last; 25 hidden for a again, da and ddepthwise. h again for four pixels
// around a tile and da for two. Bytes: 3 C.
//
// What was measured: one thread of a Xeon (family 6, model 207; AVX-512) in a shared virtual
// machine, float32, 4 x 64 x 64 x 60, hidden 120, forward and backward, kernel and reference in
// turn, medians of processor time. The reference's over the kernel's:
//                                              predicted   measured
//   this walk, with the norm last                    1.9        1.5
//   and convolve_rows, tiles as wide as the map       2.0   2.0; 2.2   (norm first 2.0; 2.1)
//   a training step of HiET-SRFormer, from 1.3       1.65  1.65 to 1.7
// A density of GELU far out, times a gradient of a mean, was a denormal number: the same walk then
// took six times as long inside of the network as alone. See GeluAndSlope.
// Where the time goes: half to the products, at 60 GMAC/s where a large matrix product has 63 to 75
// of them; most of the rest to the convolutions, bound by vectors that lie across two cache lines.
//
// What was tried: rows of tiles with pixels around them that lie outside of the picture, five
// vectors for the four of a patch of 64 (dropped: see Range). Keeping h and a from the forward was
// predicted to cost as much traffic as the arithmetic it saves, and was not tried.
#include "../common/token_gradients.h"
#include "backward.h"
#include "convolve.h"

namespace c2d::C2D_ISA {
namespace {

// Tokens of a row of a tile with some pixels more at both ends, as far as there is a picture: from
// which one on, counted from the tile's first, how many, and filled up to vectors.
struct Range {
    int64_t begin, count, length;
};

// Scratch memory of a call, cut up. Rows are of at most `inner` tokens, the tile's, or `outer`,
// with four pixels more at both ends. Those of rings have the tile's first token at `lead`, and
// zeros where there is no picture.
template <class T, int lanes>
struct Scratch {
    int64_t inner, outer, lead, ring_row;
    int64_t first_width, second_width;
    int64_t elements;
    T *x, *norm;                       // [C + 1][outer]
    T *grad, *mixed;                   // [C][outer]
    T *wide, *entry_grad;              // [hidden + 1][outer], [hidden][inner]
    T *rows, *counted;                 // [inner][first_width], [ring_row]
    T *h, *slopes, *wide_ring, *conv;  // rings [5][hidden][ring_row]: h, GELU'(p), dw, da
    T *first, *second, *taps, *norms;  // sums: dfc1, dfc2 transposed, dconvolution, dnorm

    Scratch(const ConvFfnSizes<T>& sizes, int64_t columns, T* memory)
        : inner(rounded_up(columns, lanes)),
          outer(rounded_up(columns + 4 * kReach, lanes)),
          lead(rounded_up(2 * kReach, lanes)),
          ring_row(lead + outer + lanes),
          first_width(rounded_up(sizes.channels + 1, lanes)),
          second_width(rounded_up(sizes.channels, lanes)) {
        const int64_t C = sizes.channels, hidden = sizes.hidden;
        const int64_t ring = kKernel * hidden * ring_row;
        Cut<T> cut(memory);
        cut(x, (C + 1) * outer);
        cut(norm, (C + 1) * outer);
        cut(grad, C * outer);
        cut(mixed, C * outer);
        cut(wide, (hidden + 1) * outer);
        cut(entry_grad, hidden * inner);
        cut(rows, inner * first_width);
        cut(counted, ring_row);
        cut(h, ring);
        cut(slopes, ring);
        cut(wide_ring, ring);
        cut(conv, ring);
        cut(first, hidden * first_width);
        cut(second, (hidden + 1) * second_width);
        cut(taps, hidden * (kTaps + 1) * lanes);
        cut(norms, 2 * C * lanes);
        elements = cut.elements();
    }
};

template <class T>
inline void clear(int64_t count, T* from) {
    for (int64_t i = 0; i < count; ++i) {
        from[i] = 0;
    }
}

template <class T, int lanes>
struct Walk {
    using V = Vector<T, lanes>;
    const ConvFfnSizes<T>& sizes;
    const ConvFfnWeights<T>& weights;
    const ConvFfnBackwardTile<T>& tile;
    const Scratch<T, lanes> s;
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    const Range inner = range(0), middle = range(kReach), outer = range(2 * kReach);

    Range range(int64_t around) const {
        const int64_t begin = tile.left < around ? -tile.left : -around;
        const int64_t right = sizes.width - tile.left, most = tile.columns + around;
        const int64_t count = (most < right ? most : right) - begin;
        return {begin, count, rounded_up(count, lanes)};
    }

    bool in_picture(int64_t y) const { return y >= 0 && y < sizes.height; }

    // The first token of row y in a ring.
    T* place(T* ring, int64_t y) const {
        return ring + (y - tile.top + kKernel) % kKernel * hidden * s.ring_row + s.lead;
    }

    // The rows around row y in a ring, from the first token that the convolution sees on.
    struct Rows {
        const T* row[kKernel];
    };
    Rows rows_around(T* ring, int64_t y) const {
        Rows rows;
        for (int64_t dy = 0; dy < kKernel; ++dy) {
            rows.row[dy] = place(ring, y + dy - kReach) - kReach;
        }
        return rows;
    }

    // Row y of a map.
    void turn_row(const Picture<const T>& map, int64_t y, const Range& range, T* to) const {
        int64_t token[kMostTokens];
        for (int64_t n = 0; n < range.count; ++n) {
            token[n] = y * map.row + (tile.left + range.begin + n) * map.column;
        }
        turn_in<T, lanes>(range.count, C, map.data, token, range.length, to);
    }

    // The input of fc1 and the row of ones behind it, from x.
    T* entry(int64_t length) const {
        T* const input = sizes.norm_first ? s.norm : s.x;
        if (sizes.norm_first) {
            normalise<T, lanes>(C, length, sizes.eps, s.x, input);
        }
        ones<T, lanes>(length, input + C * length);
        return input;
    }

    // Row y of h and the slopes of its GELU.
    void hidden_row(int64_t y) const {
        T *const h = place(s.h, y), *const slope = place(s.slopes, y);
        if (!in_picture(y)) {
            return clear(hidden * s.ring_row, h - s.lead);
        }
        turn_row(tile.x, y, outer, s.x);
        product<T, lanes>({C + 1, weights.first, C + 1, 1, entry(outer.length), outer.length,
                           nullptr, h + outer.begin, s.ring_row},
                          hidden, outer.length);
        for (int64_t c = 0; c < hidden; ++c) {
            const int64_t start = c * s.ring_row + outer.begin;
            for (int64_t n = start; n < start + outer.length; n += lanes) {
                const GeluAndSlope<V> gelu(load<T, lanes>(h + n));
                store<T, lanes>(h + n, gelu.value);
                store<T, lanes>(slope + n, gelu.slope);
            }
            clear(outer.length - outer.count, h + start + outer.count);
        }
    }

    // Row y of dw and da, and what it gives to the weights of fc2, the convolution and the norm.
    void middle_row(int64_t y) const {
        T* const change = place(s.conv, y);
        if (!in_picture(y)) {
            return clear(hidden * s.ring_row, change - s.lead);
        }
        const bool own = y >= tile.top && y < tile.top + tile.rows;
        const int64_t begin = middle.begin, length = middle.length;
        const Rows rows = rows_around(s.h, y);
        for (int64_t c = 0; c < hidden; ++c) {
            const T* const weight = weights.conv + c * (kTaps + 1);
            const int64_t at = c * s.ring_row + begin;
            const T* const centre = rows.row[kReach] + kReach + at;
            convolve_rows<T, lanes, 1>(
                length, rows.row, at, weight, [&](int, int64_t) { return V{} + weight[kTaps]; },
                [&](int, int64_t n, V sum) {
                    const GeluAndSlope<V> gelu(sum);
                    store<T, lanes>(s.wide + c * length + n,
                                    load<T, lanes>(centre + n) + gelu.value);
                    store<T, lanes>(change + at + n, gelu.slope);
                });
        }
        ones<T, lanes>(length, s.wide + hidden * length);
        turn_row(tile.grad, y, middle, s.grad);
        const T* grad = s.grad;
        if (!sizes.norm_first) {
            multiply<T, lanes>(C, hidden + 1, length, weights.second, s.wide, false, s.mixed);
            normalise_back<T, lanes>(C, length, sizes.eps, s.mixed, weights.norm, s.grad, s.mixed,
                                     s.counted + s.lead + begin, own ? s.norms : nullptr);
            grad = s.mixed;
        }
        T* const wide_grad = place(s.wide_ring, y);
        product<T, lanes>({C, weights.second, 1, hidden + 1, grad, length, nullptr,
                           wide_grad + begin, s.ring_row},
                          hidden, length);
        for (int64_t c = 0; c < hidden; ++c) {
            const int64_t start = c * s.ring_row + begin;
            for (int64_t n = start; n < start + length; n += lanes) {
                store<T, lanes>(change + n,
                                load<T, lanes>(change + n) * load<T, lanes>(wide_grad + n));
            }
        }
        if (own) {
            token_rows<T, lanes>(inner.count, C, grad - begin, length, s.second_width, s.rows);
            add_products<T, lanes>(hidden + 1, inner.count, s.wide - begin, length, s.rows,
                                   s.second_width, s.second);
            conv_weights(rows, change);
        }
    }

    // What da of a row gives to the convolution's weights.
    void conv_weights(const Rows& rows, const T* change) const {
        T own[kMostTokens + lanes];
        for (int64_t c = 0; c < hidden; ++c) {
            T* const sums = s.taps + c * (kTaps + 1) * lanes;
            V bias = load<T, lanes>(sums + kTaps * lanes);
            for (int64_t n = 0; n < inner.length; n += lanes) {
                const V here = load<T, lanes>(change + c * s.ring_row + n) *
                               load<T, lanes>(s.counted + s.lead + n);
                store<T, lanes>(own + n, here);
                bias += here;
            }
            store<T, lanes>(sums + kTaps * lanes, bias);
            for (int64_t dy = 0; dy < kKernel; ++dy) {
                const T* const from = rows.row[dy] + c * s.ring_row;
                T* const to = sums + dy * kKernel * lanes;
                V sum[kKernel];
#pragma GCC unroll 5
                for (int64_t dx = 0; dx < kKernel; ++dx) {
                    sum[dx] = load<T, lanes>(to + dx * lanes);
                }
                for (int64_t n = 0; n < inner.length; n += lanes) {
                    const V here = load<T, lanes>(own + n);
#pragma GCC unroll 5
                    for (int64_t dx = 0; dx < kKernel; ++dx) {
                        sum[dx] += here * load<T, lanes>(from + n + dx);
                    }
                }
#pragma GCC unroll 5
                for (int64_t dx = 0; dx < kKernel; ++dx) {
                    store<T, lanes>(to + dx * lanes, sum[dx]);
                }
            }
        }
    }

    // Row y of dx, and what it gives to the weights of fc1.
    void inner_row(int64_t y) const {
        const int64_t length = inner.length;
        const Rows rows = rows_around(s.conv, y);
        const T *const wide_grad = place(s.wide_ring, y), *const slope = place(s.slopes, y);
        for (int64_t c = 0; c < hidden; ++c) {
            T flipped[kTaps];
            for (int64_t i = 0; i < kTaps; ++i) {
                flipped[i] = weights.conv[c * (kTaps + 1) + kTaps - 1 - i];
            }
            const int64_t at = c * s.ring_row;
            convolve_rows<T, lanes, 1>(
                length, rows.row, at, flipped,
                [&](int, int64_t n) { return load<T, lanes>(wide_grad + at + n); },
                [&](int, int64_t n, V sum) {
                    store<T, lanes>(s.entry_grad + c * length + n,
                                    sum * load<T, lanes>(slope + at + n));
                });
        }
        turn_row(tile.x, y, inner, s.x);
        token_rows<T, lanes>(inner.count, C + 1, entry(length), length, s.first_width, s.rows);
        add_products<T, lanes>(hidden, inner.count, s.entry_grad, length, s.rows, s.first_width,
                               s.first);
        product<T, lanes>(
            {hidden, weights.first, 1, C + 1, s.entry_grad, length, nullptr, s.mixed, length}, C,
            length);
        if (sizes.norm_first) {
            normalise_back<T, lanes>(C, length, sizes.eps, s.x, nullptr, s.mixed, s.mixed);
        }
        turn_row(tile.grad, y, inner, s.grad);
        for (int64_t i = 0; i < C * length; i += lanes) {
            store<T, lanes>(s.mixed + i, load<T, lanes>(s.mixed + i) + load<T, lanes>(s.grad + i));
        }
        int64_t token[kMostTokens];
        for (int64_t n = 0; n < inner.count; ++n) {
            token[n] = y * tile.x_grad.row + (tile.left + n) * tile.x_grad.column;
        }
        turn_out<T, lanes>(inner.count, C, s.mixed, length, token, tile.x_grad.data);
    }
};

template <class T, int lanes>
void run(const ConvFfnSizes<T>& sizes, const ConvFfnWeights<T>& weights,
         const ConvFfnBackwardTile<T>& tile, T* scratch, const ConvFfnGradients<T>& gradients) {
    const Walk<T, lanes> walk{sizes, weights, tile, {sizes, tile.columns, scratch}};
    const Scratch<T, lanes>& s = walk.s;
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    clear(s.elements, scratch);
    for (int64_t n = 0; n < tile.columns; ++n) {
        s.counted[s.lead + n] = 1;
    }
    for (int64_t y = tile.top - 2 * kReach; y < tile.top + tile.rows + 2 * kReach; ++y) {
        walk.hidden_row(y);
        if (y >= tile.top) {
            walk.middle_row(y - kReach);
        }
        if (y - 2 * kReach >= tile.top) {
            walk.inner_row(y - 2 * kReach);
        }
    }
    add_columns(hidden, C + 1, s.first, s.first_width, gradients.first);
    add_columns(hidden + 1, C, s.second, s.second_width, gradients.second);
    add_lanes<T, lanes>(hidden * (kTaps + 1), s.taps, gradients.conv);
    add_lanes<T, lanes>(2 * C, s.norms, gradients.norm);
}

template <class T, int lanes>
int64_t scratch(const ConvFfnSizes<T>& sizes, int64_t columns) {
    return Scratch<T, lanes>(sizes, columns, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const ConvFfnBackward<float> conv_ffn_backward_float32 = {kFloats, scratch<float, kFloats>,
                                                                 run<float, kFloats>};
extern const ConvFfnBackward<double> conv_ffn_backward_float64 = {
    kDoubles, scratch<double, kDoubles>, run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
