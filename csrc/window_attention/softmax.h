// The softmax of a block of queries over the keys of their window, keys by rows. Like simd.h,
// compiled once per instruction set, with internal linkage.
#pragma once

#include "../common/product.h"
#include "../common/vector_math.h"

namespace c2d::C2D_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kMask = -100;  // added to the score of a key in another region, as Swin does it

// Powers of two of less than this are taken for 0, beside a sum of at least 1. Any number of keys
// with less would not change the sum, and as denormal numbers they, and what they are multiplied
// with, cost a processor a hundred times as much: the mask's exp(-100) is one of those in float32.
template <class T>
constexpr T kLeastExponent = sizeof(T) == 4 ? T(-64) : T(-512);

// What the softmax leaves undone: one over the sum of each query's exponentials.
template <class T, int lanes>
struct Inverse {
    T of[2 * lanes];
};

// A sum over keys in four parts: one would wait for itself, and its rounding errors grow with it.
template <class T, int lanes>
struct Sums {
    Vector<T, lanes> of[4]{};

    void add(int64_t key, Vector<T, lanes> value) { of[key % 4] += value; }
    Vector<T, lanes> total() const { return (of[0] + of[1]) + (of[2] + of[3]); }
};

// The largest score of each of a vector of queries. Four maxima at a time: one would wait for
// itself.
template <class T, int lanes>
inline Vector<T, lanes> largest(const T* scores, int64_t keys, int64_t step) {
    using V = Vector<T, lanes>;
    constexpr int chains = 4;
    V most[chains];
    for (int i = 0; i < chains; ++i) {
        most[i] = load<T, lanes>(scores + (i < keys ? i : 0) * step);
    }
    int64_t key = chains;
    for (; key + chains <= keys; key += chains) {
#pragma GCC unroll 4
        for (int i = 0; i < chains; ++i) {
            const V score = load<T, lanes>(scores + (key + i) * step);
            most[i] = score > most[i] ? score : most[i];
        }
    }
    for (; key < keys; ++key) {
        const V score = load<T, lanes>(scores + key * step);
        most[0] = score > most[0] ? score : most[0];
    }
    for (int i = 1; i < chains; ++i) {
        most[0] = most[i] > most[0] ? most[i] : most[0];
    }
    return most[0];
}

// scores[key][query] = exp(score + mask - max over keys) for a block of `step` queries, at most two
// vectors. The mask is -100 between different regions; none without query_region.
template <class T, int lanes>
inline void softmax(T* all, int64_t keys, int64_t step, const T* query_region, const T* key_region,
                    Inverse<T, lanes>& inverse) {
    using V = Vector<T, lanes>;
    for (int64_t column = 0; column < step; column += lanes) {
        T* const scores = all + column;
        if (query_region != nullptr) {
            const V region = load<T, lanes>(query_region + column);
            const V kept{}, masked = kept + T(kMask);
            for (int64_t m = 0; m < keys; ++m) {
                const V other = kept + key_region[m];
                T* const at = scores + m * step;
                store<T, lanes>(at, load<T, lanes>(at) + (region != other ? masked : kept));
            }
        }
        const V most = largest<T, lanes>(scores, keys, step);
        Sums<T, lanes> sums;
#pragma GCC unroll 4
        for (int64_t m = 0; m < keys; ++m) {
            T* const at = scores + m * step;
            const V exponent = (load<T, lanes>(at) - most) * T(kLog2E);
            const V power = exp2_from(kLeastExponent<T>, exponent);
            sums.add(m, power);
            store<T, lanes>(at, power);
        }
        store<T, lanes>(inverse.of + column, T(1) / sums.total());
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
