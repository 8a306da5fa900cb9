// The vector instruction sets the CPU kernels are compiled for, and the one in use here.
//
// An operator's kernel.cpp is compiled once per instruction set, each time into its own namespace
// (c2d::baseline, c2d::avx2, c2d::avx512), and the host side picks a namespace at run time. A wheel
// therefore runs on any x86-64 or 64-bit Arm machine and still uses what the machine has.
#pragma once

#include <cstdint>

namespace c2d {

// avx512bf16 is avx512 with products of bfloat16: only files that end in bf16_kernel.cpp are
// compiled for it, where the compiler knows it, and beside them it uses what avx512 has.
enum class Isa : std::int32_t { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// The widest instruction set that this library holds and this machine runs. The environment
// variable C2D_ISA (baseline, avx2, avx512, avx512bf16) asks for a narrower one: the tests compare
// them all.
Isa isa_in_use();

const char* isa_name(Isa isa);

// Names of the instruction sets compiled in, widest last, such as "baseline avx2 avx512".
const char* isas_compiled();

// Picks a kernel table of the instruction set in use: C2D_FOR_ISA(table) is c2d::<isa>::table.
#if defined(__x86_64__)
#define C2D_FOR_ISA(table)                                            \
    (::c2d::isa_in_use() >= ::c2d::Isa::avx512 ? ::c2d::avx512::table \
     : ::c2d::isa_in_use() == ::c2d::Isa::avx2 ? ::c2d::avx2::table   \
                                               : ::c2d::baseline::table)
#else
#define C2D_FOR_ISA(table) (::c2d::baseline::table)
#endif

// The address of a kernel table for products of bfloat16, null where this library or the machine
// has none.
#if defined(C2D_WITH_AVX512BF16)
#define C2D_FOR_BF16(table) \
    (::c2d::isa_in_use() == ::c2d::Isa::avx512bf16 ? &::c2d::avx512bf16::table : nullptr)
#else
#define C2D_FOR_BF16(table) (decltype (&::c2d::avx512bf16::table)(nullptr))
#endif

}  // namespace c2d
