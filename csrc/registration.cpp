// Every private operator of the native library: its schema and the dispatch key it serves.
//
// The public operators c2d::* are Python custom operators; their implementations call these after
// checking arguments and choosing a backend. Only the stable ABI of libtorch is used, so that one
// build serves every torch from 2.10 on, and nothing of Python, so that it serves every Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "common/isa.h"
#include "kernels.h"
#if defined(C2D_WITH_CUDA)
#include "common/cuda_info.h"
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

STABLE_TORCH_LIBRARY(c2d_native, m) {
    m.def("build_info() -> str");
    m.def("bfloat16_products() -> bool");
    m.def("cuda_image() -> int");
    m.def("channel_correlation(Tensor q, Tensor v, int window_height, int window_width) -> Tensor");
    m.def(
        "channel_correlation_backward(Tensor grad, Tensor q, Tensor v, int window_height, "
        "int window_width) -> (Tensor, Tensor)");
    m.def(
        "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
        "Tensor? z, Tensor? delta_bias, bool delta_softplus, bool keep_states) -> "
        "(Tensor, Tensor, Tensor)");
    m.def(
        "selective_scan_backward(Tensor grad_y, Tensor grad_last_state, Tensor kept_states, "
        "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
        "Tensor? delta_bias, bool delta_softplus) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coordinate_query(Tensor features, Tensor image, Tensor weights, Tensor folds, "
        "Tensor y_low, Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, "
        "Tensor x_t, Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions) "
        "-> Tensor");
    m.def(
        "coordinate_query_moments(Tensor features, Tensor weights, Tensor folds, Tensor y_low, "
        "Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, Tensor x_t, "
        "Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions) -> Tensor");
    m.def(
        "coordinate_query_positions(Tensor coords, Tensor features, int levels) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "coordinate_query_image_backward(Tensor grad, Tensor y_low, Tensor y_high, Tensor y_t, "
        "Tensor x_low, Tensor x_high, Tensor x_t, int height, int width) -> Tensor");
    m.def(
        "coordinate_query_segment(Tensor features, Tensor weights, Tensor folds, "
        "Tensor y_low, Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, "
        "Tensor x_t, Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions, "
        "int segment, Tensor state, Tensor image, Tensor(a!) out) -> Tensor");
    m.def(
        "coordinate_query_segment_backward(Tensor grad, Tensor moment_grad, "
        "Tensor features, Tensor weights, Tensor folds, "
        "Tensor y_low, Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, "
        "Tensor x_t, Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions, "
        "int segment, Tensor state) -> (Tensor, Tensor, Tensor)");
    m.def(
        "window_attention(Tensor q, Tensor? kv, Tensor bias_table, int window_size, "
        "int num_heads, int shift, float scale) -> Tensor");
    m.def(
        "window_attention_backward(Tensor grad, Tensor q, Tensor? kv, Tensor bias_table, "
        "int window_size, int num_heads, int shift, float scale) -> (Tensor, Tensor, Tensor)");
    m.def(
        "window_layer(Tensor x, Tensor qkv, Tensor proj, Tensor? first, Tensor? second, "
        "Tensor bias_table, int window_size, int num_heads, int shift, float eps) -> Tensor");
    m.def("res_post_norm(Tensor x, Tensor[] parts, Tensor[] weights, float eps) -> Tensor");
    m.def(
        "res_post_norm_backward(Tensor grad, Tensor x, Tensor[] parts, Tensor[] weights, "
        "float eps) -> (Tensor, Tensor[], Tensor[])");
    m.def(
        "conv_ffn(Tensor x, Tensor first, Tensor conv, Tensor second, Tensor norm, "
        "bool norm_first, float eps) -> Tensor");
    m.def(
        "conv_ffn_backward(Tensor grad, Tensor x, Tensor first, Tensor conv, Tensor second, "
        "Tensor norm, bool norm_first, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "dual_features(Tensor x, Tensor local, Tensor linear, Tensor conv, Tensor conv_bias, "
        "Tensor expand, Tensor? by_row, Tensor? by_column) -> Tensor");
    m.def(
        "spatial_correlation(Tensor q, Tensor v, Tensor weight, Tensor weight_bias, "
        "Tensor bias_table, int window_height, int window_width, int base_height, "
        "int base_width, int num_heads) -> Tensor");
    m.def(
        "spatial_correlation_backward(Tensor grad, Tensor q, Tensor v, Tensor weight, "
        "Tensor weight_bias, Tensor bias_table, int window_height, int window_width, "
        "int base_height, int base_width, int num_heads) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CompositeExplicitAutograd, m) {
    m.impl("build_info", TORCH_BOX(&c2d::build_info));
    m.impl("bfloat16_products", TORCH_BOX(&c2d::bfloat16_products));
    m.impl("cuda_image", TORCH_BOX(&c2d::cuda_image));
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("channel_correlation", TORCH_BOX(&c2d::channel_correlation));
    m.impl("channel_correlation_backward", TORCH_BOX(&c2d::channel_correlation_backward));
    m.impl("selective_scan", TORCH_BOX(&c2d::selective_scan));
    m.impl("selective_scan_backward", TORCH_BOX(&c2d::selective_scan_backward));
    m.impl("coordinate_query", TORCH_BOX(&c2d::coordinate_query));
    m.impl("coordinate_query_moments", TORCH_BOX(&c2d::coordinate_query_moments));
    m.impl("coordinate_query_positions", TORCH_BOX(&c2d::coordinate_query_positions));
    m.impl("coordinate_query_image_backward", TORCH_BOX(&c2d::coordinate_query_image_backward));
    m.impl("coordinate_query_segment", TORCH_BOX(&c2d::coordinate_query_segment));
    m.impl("coordinate_query_segment_backward", TORCH_BOX(&c2d::coordinate_query_segment_backward));
    m.impl("window_attention", TORCH_BOX(&c2d::window_attention));
    m.impl("window_attention_backward", TORCH_BOX(&c2d::window_attention_backward));
    m.impl("window_layer", TORCH_BOX(&c2d::window_layer));
    m.impl("conv_ffn", TORCH_BOX(&c2d::conv_ffn));
    m.impl("conv_ffn_backward", TORCH_BOX(&c2d::conv_ffn_backward));
    m.impl("dual_features", TORCH_BOX(&c2d::dual_features));
    m.impl("res_post_norm", TORCH_BOX(&c2d::res_post_norm));
    m.impl("res_post_norm_backward", TORCH_BOX(&c2d::res_post_norm_backward));
    m.impl("spatial_correlation", TORCH_BOX(&c2d::spatial_correlation));
    m.impl("spatial_correlation_backward", TORCH_BOX(&c2d::spatial_correlation_backward));
}

#if defined(C2D_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(c2d_native, CUDA, m) {
    m.impl("selective_scan", TORCH_BOX(&c2d::selective_scan_cuda));
    m.impl("selective_scan_backward", TORCH_BOX(&c2d::selective_scan_backward_cuda));
}
#endif
