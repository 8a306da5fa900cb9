// What the library says of itself. It has no list of its operators: each one's host sides register
// the private kernels torch.ops.c2d_native.* that they define.
//
// The public operators c2d::* are Python custom operators; their implementations call these after
// checking arguments and choosing a backend. Only the stable ABI of libtorch is used, so that one
// build serves every torch from 2.10 on, and nothing of Python, so that it serves every Python.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

#include "isa.h"
#if defined(C2D_WITH_CUDA)
#include "cuda_info.h"
#endif

namespace c2d {
namespace {

// One line on what was compiled in and what is used here.
std::string build_info() {
    std::string info = "compiled by ";
#if defined(__clang__)
    info += "clang ";
#elif defined(__GNUC__)
    info += "gcc ";
#endif
    info += __VERSION__;
    info += ", instruction sets ";
    info += isas_compiled();
    info += " (in use: ";
    info += isa_name(isa_in_use());
    info += "), ";
#if defined(C2D_WITH_CUDA)
    info += cuda_build_info();
#else
    info += "no CUDA";
#endif
    return info;
}

// Whether there are kernels here that multiply bfloat16, of the operators that have such.
bool bfloat16_products() { return isa_in_use() == Isa::avx512bf16; }

// The architecture (90 for sm_90) of the device code that the driver picks for the current GPU; 0
// without CUDA code, a driver or a GPU.
int64_t cuda_image() {
#if defined(C2D_WITH_CUDA)
    return cuda_image_arch();
#else
    return 0;
#endif
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def("build_info() -> str");
    m.def("bfloat16_products() -> bool");
    m.def("cuda_image() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CompositeExplicitAutograd, m) {
    m.impl("build_info", TORCH_BOX(&c2d::build_info));
    m.impl("bfloat16_products", TORCH_BOX(&c2d::bfloat16_products));
    m.impl("cuda_image", TORCH_BOX(&c2d::cuda_image));
}
