// What the CUDA part of the library was compiled for. No torch, no CUDA headers.
#pragma once

namespace c2d {

// Such as "CUDA 13.0 for sm_90 compute_90 (driver 13.0)", or "(no driver)". Starts no CUDA context.
const char* cuda_build_info();

// The architecture, 90 for sm_90, of the device code that the driver picks for the current GPU, and
// 0 where there is none. Starts a context on that GPU.
int cuda_image_arch();

}  // namespace c2d
