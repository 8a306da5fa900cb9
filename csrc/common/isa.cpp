#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace c2d {
namespace {

Isa widest_here() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
#if defined(C2D_WITH_AVX512BF16)
        if (__builtin_cpu_supports("avx512bf16")) {
            return Isa::avx512bf16;
        }
#endif
        return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return Isa::avx2;
    }
#endif
    return Isa::baseline;
}

Isa choose() {
    const Isa widest = widest_here();
    const char* asked = std::getenv("C2D_ISA");
    if (asked == nullptr) {
        return widest;
    }
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
        if (std::strcmp(asked, isa_name(isa)) == 0) {
            return isa < widest ? isa : widest;  // never more than the machine can run
        }
    }
    return widest;
}

}  // namespace

Isa isa_in_use() {
    static const Isa isa = choose();
    return isa;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512bf16:
            return "avx512bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "baseline";
    }
}

const char* isas_compiled() {
#if defined(C2D_WITH_AVX512BF16)
    return "baseline avx2 avx512 avx512bf16";
#elif defined(__x86_64__)
    return "baseline avx2 avx512";
#else
    return "baseline";
#endif
}

}  // namespace c2d
