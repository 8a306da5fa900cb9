// Swin V2's layer in windows (2111.09883) on the CPU, one instruction set at a time:
// y = x + LN(proj(attention of cosines(qkv(x)))), then y + LN(fc2(GELU(fc1(y)))), one window after
// the other. How, and how features lie: ../attention_branch/attention.h, whose attention this is,
// on queries and keys divided by their lengths.
//
// Costs, multiply-adds per token: 4 C^2 + 2 C hidden + 2 keys C, and an exponential for each pair
// of token and key of a head. Bytes: 2 C.
//
// What was measured: the authors' Swin2SR on this layer instead of torch's product,
// cosine_window_attention and res_post_norm; one thread of an AMD EPYC (family 25, model 17; AVX2)
// in a shared virtual machine, float32, times of the network as written over these, before and with
// the layer: light, 64 x 64, 1.99 and 3.39, 128 x 128, 2.47 and 4.40; M 1.33 and 1.76, 1.45 and
// 2.48. Predicted were 3 and 1.6 at 64 x 64.
#include "cosine_window_layer.h"

#include "../attention_branch/attention.h"

namespace c2d::C2D_ISA {
namespace {

template <class T, int lanes>
int64_t scratch(const BranchSizes<T>& sizes, int64_t hidden) {
    return Scratch<T, lanes>(sizes, hidden, nullptr).elements;
}

// Each head's features of a token times `scale` over their length; lengths below 1e-12 count as
// that.
template <class T, int lanes>
inline void divide_by_lengths(int64_t heads, int64_t head_dim, int64_t length, const T* scale,
                              T* features) {
    using V = Vector<T, lanes>;
    for (int64_t head = 0; head < heads; ++head, features += head_dim * length) {
        for (int64_t n = 0; n < length; n += lanes) {
            const V size = sqrt_of(
                channel_sum<T, lanes>(head_dim, length, features + n, [](V v) { return v * v; }));
            const V least = V{} + T(1e-12);
            const V factor =
                (scale == nullptr ? T(1) : scale[head]) / (size > least ? size : least);
            for (int64_t d = 0; d < head_dim; ++d) {
                T* const at = features + d * length + n;
                store<T, lanes>(at, load<T, lanes>(at) * factor);
            }
        }
    }
}

// x and the row of ones behind it, where a product may read them.
template <class T, int lanes>
inline void copy_with_ones(int64_t channels, int64_t length, const T* x, T* to) {
    for (int64_t i = 0; i < channels * length; i += lanes) {
        store<T, lanes>(to + i, load<T, lanes>(x + i));
    }
    ones<T, lanes>(length, to + channels * length);
}

template <class T, int lanes>
void run(const BranchSizes<T>& sizes, const BranchWeights<T>& weights,
         const CosineWeights<T>& cosine, const MlpWeights<T>& mlp, const BranchWindow<T>& window,
         T* memory) {
    const Scratch<T, lanes> s(sizes, mlp.hidden, memory);
    const int64_t C = sizes.channels, length = s.length, hidden = mlp.hidden;
    const int64_t heads = sizes.heads, head_dim = C / heads, matrix = C * (C + 1);
    turn_in<T, lanes>(length, C, window.x, window.x_token, length, s.x);
    copy_with_ones<T, lanes>(C, length, s.x, s.norm);
    multiply<T, lanes>(C, C + 1, length, weights.qkv, s.norm, false, s.q);
    multiply<T, lanes>(C, C + 1, length, weights.qkv + matrix, s.norm, false, s.k);
    multiply<T, lanes>(C, C + 1, length, weights.qkv + 2 * matrix, s.norm, false, s.v);
    divide_by_lengths<T, lanes>(heads, head_dim, length, cosine.scale, s.q);
    divide_by_lengths<T, lanes>(heads, head_dim, length, nullptr, s.k);
    attend<T, lanes>(sizes, weights, window, s, 0);
    T* const mixed = s.k;  // which is used up
    multiply<T, lanes>(C, C + 1, length, weights.proj, s.norm, false, mixed);
    add_normalised<T, lanes>(C, length, sizes.eps, mixed, cosine.norm1, cosine.norm1 + C, s.x);

    copy_with_ones<T, lanes>(C, length, s.x, s.norm);
    multiply<T, lanes>(hidden, C + 1, length, mlp.first, s.norm, false, s.hidden);
    activate<T, lanes>(hidden, length, s.hidden);
    multiply<T, lanes>(C, hidden + 1, length, mlp.second, s.hidden, false, s.norm);
    add_normalised<T, lanes>(C, length, sizes.eps, s.norm, cosine.norm2, cosine.norm2 + C, s.x);
    turn_out<T, lanes>(length, C, s.x, length, window.out_token, window.out);
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const CosineLayerKernels<float> cosine_layer_float32 = {kFloats, scratch<float, kFloats>,
                                                               run<float, kFloats>};
extern const CosineLayerKernels<double> cosine_layer_float64 = {kDoubles, scratch<double, kDoubles>,
                                                                run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
