// LayerNorms of rows of channels without their affine part, and the way back. As many rows as a
// vector has lanes are taken together: their sums are added over the lanes in one go, and one root
// and one division serve them all. Like simd.h, compiled once per instruction set, with internal
// linkage.
//
// Rows are taken by whole vectors of rows and of channels: there must be memory for as many, where
// channels behind `count` stay what they are, and rows behind `rows` get numbers without a meaning.
#pragma once

#include "../common/vector_math.h"
#include "coordinate_query.h"

namespace c2d::C2D_ISA {
namespace {

template <class T, int lanes>
struct Lanes {
    typedef Vector<T, lanes> V;
    typedef __typeof__(V{} < V{}) Mask;

    // Whether a lane is among the first `count`.
    static inline Mask below(int64_t count) {
        V place;
        for (int i = 0; i < lanes; ++i) {
            place[i] = T(i);
        }
        return place < filled<V>(T(count));
    }

    // The first `count` of a vector's numbers, the others zero.
    static inline V some(const T* from, int64_t count) {
        V vector{};
        for (int i = 0; i < lanes && i < count; ++i) {
            vector[i] = from[i];
        }
        return vector;
    }
};

// Calls use(first channel, mask) for the vectors of a row; the mask is all ones but for the last.
template <class T, int lanes, class Use>
inline __attribute__((always_inline)) void each_vector(int64_t count, const Use& use) {
    int64_t c = 0;
    for (; c + lanes <= count; c += lanes) {
        use(c, ~typename Lanes<T, lanes>::Mask{});
    }
    if (c < count) {
        use(c, Lanes<T, lanes>::below(count - c));
    }
}

// Normalises the channels at x of rows `stride` apart; one over the standard deviations in `scale`.
template <class T, int lanes>
void normalise(int64_t rows, int64_t count, T* x, int64_t stride, T* scale) {
    typedef Vector<T, lanes> V;
    for (int64_t row = 0; row < rows; row += lanes, x += lanes * stride, scale += lanes) {
        alignas(64) T factor[lanes];
        V sums[lanes];
        for (int i = 0; i < lanes; ++i) {
            V sum{};
            each_vector<T, lanes>(count, [&](int64_t c, auto mask) {
                sum += mask ? load<T, lanes>(x + i * stride + c) : V{};
            });
            sums[i] = sum;
        }
        store<T, lanes>(factor, sums_over_lanes<T, lanes, lanes>(sums) / T(count));
        for (int i = 0; i < lanes; ++i) {
            V sum{};
            const V mean = filled<V>(factor[i]);
            each_vector<T, lanes>(count, [&](int64_t c, auto mask) {
                const V old = load<T, lanes>(x + i * stride + c);
                const V centred = mask ? old - mean : V{};
                sum += centred * centred;
            });
            sums[i] = sum;
        }
        const V variance = sums_over_lanes<T, lanes, lanes>(sums) / T(count) + T(kNormEpsilon);
        const V scales = T(1) / sqrt_of(variance);
        store<T, lanes>(scale, scales);
        for (int i = 0; i < lanes; ++i) {
            const V mean = filled<V>(factor[i]), inverse = filled<V>(scale[i]);
            each_vector<T, lanes>(count, [&](int64_t c, auto mask) {
                const V old = load<T, lanes>(x + i * stride + c);
                store<T, lanes>(x + i * stride + c, mask ? (old - mean) * inverse : old);
            });
        }
    }
}

// The gradient of such a LayerNorm's input in place of that of its result.
template <class T, int lanes>
void normalise_back(int64_t rows, int64_t count, const T* normed, int64_t stride, const T* scale,
                    T* grad, int64_t grad_stride) {
    typedef Vector<T, lanes> V;
    for (int64_t row = 0; row < rows; row += lanes) {
        alignas(64) T means[lanes], along[lanes];
        V sums[lanes], products[lanes];
        for (int i = 0; i < lanes; ++i) {
            V sum{}, product{};
            each_vector<T, lanes>(count, [&](int64_t c, auto mask) {
                const V g = mask ? load<T, lanes>(grad + i * grad_stride + c) : V{};
                sum += g;
                product += mask ? g * load<T, lanes>(normed + i * stride + c) : V{};
            });
            sums[i] = sum;
            products[i] = product;
        }
        store<T, lanes>(means, sums_over_lanes<T, lanes, lanes>(sums) / T(count));
        store<T, lanes>(along, sums_over_lanes<T, lanes, lanes>(products) / T(count));
        for (int i = 0; i < lanes; ++i) {
            const V mean = filled<V>(means[i]), share = filled<V>(along[i]);
            const V inverse = filled<V>(scale[i]);
            each_vector<T, lanes>(count, [&](int64_t c, auto mask) {
                T* const at = grad + i * grad_stride + c;
                const V g = load<T, lanes>(at), n = load<T, lanes>(normed + i * stride + c);
                store<T, lanes>(at, mask ? inverse * (g - mean - n * share) : g);
            });
        }
        normed += lanes * stride;
        grad += lanes * grad_stride;
        scale += lanes;
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
