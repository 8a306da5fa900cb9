// Vectors for the CPU kernels, in the GCC and Clang vector extension.
//
// Included only by files that are compiled once per instruction set (-DC2D_ISA=...). Everything
// here lives in that instruction set's namespace and has internal linkage: a function shared
// between such files could be kept by the linker in its AVX-512 form and then run on a machine
// without it. For the same reason these files use no standard library template.
#pragma once

#ifndef C2D_ISA
#error "simd.h belongs to files compiled once per instruction set, with -DC2D_ISA=<name>"
#endif

#include <stdint.h>

namespace c2d::C2D_ISA {
namespace {

// Bytes of the widest register, and a register tile that leaves room for the operands.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;  // 8 x 2 of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6;  // 6 x 2 of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;

template <class T, int lanes>
struct VectorOf {
    typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};

template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <class T, int lanes>
inline __attribute__((always_inline)) Vector<T, lanes> load(const T* from) {
    Vector<T, lanes> vector;
    __builtin_memcpy(&vector, from, sizeof(vector));
    return vector;
}

template <class T, int lanes>
inline __attribute__((always_inline)) void store(T* to, Vector<T, lanes> vector) {
    __builtin_memcpy(to, &vector, sizeof(vector));
}

// A vector that fits a register stays in one: compilers fetch what several multiply-adds share from
// memory again for each of them.
template <class V>
inline __attribute__((always_inline)) void keep_in_register(V& vector) {
#if defined(__x86_64__)
    asm("" : "+v"(vector));
#elif defined(__aarch64__)
    asm("" : "+w"(vector));
#endif
}

template <int... indices>
struct Indices {};
template <int count, int... rest>
struct IndicesTo : IndicesTo<count - 1, count - 1, rest...> {};
template <int... rest>
struct IndicesTo<0, rest...> {
    typedef Indices<rest...> type;
};

// Elements of a (0, 1, ...) and b (lanes, lanes + 1, ...) in the order Pick::at(0), Pick::at(1),
// ...
template <class Pick, class V, int... i>
inline __attribute__((always_inline)) V shuffled(V a, V b, Indices<i...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, Pick::at(i)...);
#else
    constexpr int lanes = sizeof...(i);
    return V{(Pick::at(i) < lanes ? a[Pick::at(i) % lanes] : b[Pick::at(i) % lanes])...};
#endif
}

// Halves of a and b with their elements in turn: a0 b0 a1 b1 ...; from the middle on if `upper`.
template <int lanes, bool upper>
struct Zip {
    static constexpr int at(int i) { return i / 2 + (upper ? lanes / 2 : 0) + i % 2 * lanes; }
};

// Transposes lanes x lanes numbers in registers. A round rotates the bits of each number's address
// (row, column) by one; log2(lanes) rounds exchange row and column.
template <class T, int lanes>
inline __attribute__((always_inline)) void transpose(Vector<T, lanes> (&rows)[lanes]) {
    typedef typename IndicesTo<lanes>::type All;
#pragma GCC unroll 4
    for (int round = 1; round < lanes; round *= 2) {
        Vector<T, lanes> next[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes / 2; ++i) {
            next[2 * i] = shuffled<Zip<lanes, false>>(rows[i], rows[i + lanes / 2], All());
            next[2 * i + 1] = shuffled<Zip<lanes, true>>(rows[i], rows[i + lanes / 2], All());
        }
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            rows[i] = next[i];
        }
    }
}

// The halves that are added when vectors are summed over their lanes, see sums_over_lanes.
template <int lanes, int width, bool upper>
struct Half {
    static constexpr int at(int i) {
        const int segment = i / (width / 2), segments = lanes / width;
        return segment % segments * width + i % (width / 2) + (upper ? width / 2 : 0) +
               segment / segments * lanes;
    }
};

// Sums of `count` vectors over their lanes, in the first `count` lanes of the result. Vectors are
// combined in pairs: each halving of the width of a vector's share doubles the vectors in one.
template <class T, int lanes, int count, int width = lanes>
inline __attribute__((always_inline)) Vector<T, lanes> sums_over_lanes(
    const Vector<T, lanes>* vectors) {
    typedef typename IndicesTo<lanes>::type All;
    constexpr int left = count > 1 ? count / 2 : 1;
    if constexpr (width == 1) {
        return vectors[0];
    } else {
        Vector<T, lanes> sums[left];
#pragma GCC unroll 16
        for (int i = 0; i < left; ++i) {
            const Vector<T, lanes> a = vectors[count > 1 ? 2 * i : 0];
            const Vector<T, lanes> b = vectors[count > 1 ? 2 * i + 1 : 0];
            sums[i] = shuffled<Half<lanes, width, false>>(a, b, All()) +
                      shuffled<Half<lanes, width, true>>(a, b, All());
        }
        return sums_over_lanes<T, lanes, left, width / 2>(sums);
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
