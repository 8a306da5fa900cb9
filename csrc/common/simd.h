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

}  // namespace
}  // namespace c2d::C2D_ISA
