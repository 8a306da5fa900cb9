// Says which device code is in the library and which part of it a GPU would run. The kernel is the
// smallest one there can be: that it is found and loaded is the point.
#include <cuda_runtime_api.h>

#include <cstdio>

#include "cuda_info.h"

namespace c2d {
namespace {

__global__ void marker() {}

}  // namespace

const char* cuda_build_info() {
    static char info[256];
    int driver = 0;
    char driver_text[32] = "no driver";
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) {
        std::snprintf(driver_text, sizeof(driver_text), "driver %d.%d", driver / 1000,
                      driver % 1000 / 10);
    }
    std::snprintf(info, sizeof(info), "CUDA %d.%d for %s (%s)", CUDART_VERSION / 1000,
                  CUDART_VERSION % 1000 / 10, C2D_CUDA_ARCHS, driver_text);
    return info;
}

int cuda_image_arch() {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&marker)) != cudaSuccess) {
        cudaGetLastError();  // clears it: no GPU is not an error of a later launch
        return 0;
    }
    return attributes.binaryVersion;
}

}  // namespace c2d
