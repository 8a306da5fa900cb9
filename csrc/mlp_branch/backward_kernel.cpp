// The backward of an MLP with the norm before it and the skip around it, on the CPU, one
// instruction set at a time.
//
// With n = LN(x), p = fc1(n), h = GELU(p), y = x + fc2(h), and g the gradient of y:
//   dp = (fc2^T g) GELU'(p),  dx = g + fc1^T dp through the norm;
//   dfc2 = g h^T and dfc1 = dp n^T, summed over tokens.
//
// Idea. Nothing is kept from the forward: 64 tokens go through its first half again, in the layout
// of layer.h, and at once back, while they, the weights and the weights' gradients stay in the
// first levels of cache. Main memory sees x, g and dx.
//
// Costs, multiply-adds per token: 5 C hidden. Bytes: 3 C.
//
// What was measured, as in layer.h, forward and backward, torch's time over the kernels': with AVX2
// 1.48, 1.00, 1.04 and, at 240 channels, 0.88; with AVX-512 1.76, 1.08, 1.17 and 1.01. Predicted
// was 1.3 to 2. Torch keeps fc1's result and does six products of that size, these seven; beyond
// 224 channels, where sums and weights leave the second level of cache, training is left to torch.
#include "../common/mlp_gradients.h"
#include "backward.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of kTokens tokens, tokens as rows, and sums.
template <class T, int lanes>
struct Scratch {
    int64_t wide_width, width;   // C + 1 and C, filled up
    T *x, *norm, *grad, *moved;  // [C], [C + 1], [C], [C]
    T *hidden, *slope, *wide;    // [hidden + 1], [hidden], [hidden]
    T* rows;                     // [kTokens][wide_width]
    int64_t sums_at, elements;   // sums are the last
    T *first, *second;

    Scratch(const MlpSizes<T>& sizes, T* memory)
        : wide_width(rounded_up(sizes.channels + 1, lanes)),
          width(rounded_up(sizes.channels, lanes)) {
        const int64_t C = sizes.channels, count = sizes.hidden;
        Cut<T> cut(memory);
        cut(x, C * kTokens);
        cut(norm, (C + 1) * kTokens);
        cut(grad, C * kTokens);
        cut(moved, C * kTokens);
        cut(hidden, (count + 1) * kTokens);
        cut(slope, count * kTokens);
        cut(wide, count * kTokens);
        cut(rows, kTokens * wide_width);
        sums_at = cut.elements();
        cut(first, count * wide_width);
        cut(second, (count + 1) * width);
        elements = cut.elements();
    }

    MlpRows<T> mlp(const MlpSizes<T>& sizes, const MlpWeights<T>& weights) const {
        return {sizes.channels, sizes.hidden, weights.first, weights.second, norm,  hidden, slope,
                wide,           rows,         wide_width,    width,          first, second};
    }
};

template <class T, int lanes>
void start(const MlpSizes<T>& sizes, T* scratch) {
    const Scratch<T, lanes> s(sizes, scratch);
    for (int64_t i = s.sums_at; i < s.elements; ++i) {
        scratch[i] = 0;
    }
}

template <class T, int lanes>
void run(const MlpSizes<T>& sizes, const MlpWeights<T>& weights, int64_t count,
         const TokensOf<const T>& x, const TokensOf<const T>& grad, const TokensOf<T>& x_grad,
         T* scratch) {
    const Scratch<T, lanes> s(sizes, scratch);
    const int64_t C = sizes.channels, length = rounded_up(count, lanes);
    turn_in<T, lanes>(count, C, x.map, x.token, length, s.x);
    turn_in<T, lanes>(count, C, grad.map, grad.token, length, s.grad);

    normalise<T, lanes>(C, length, sizes.eps, s.x, s.norm);
    ones<T, lanes>(length, s.norm + C * length);
    const MlpRows<T> mlp = s.mlp(sizes, weights);
    mlp_forward<T, lanes>(mlp, length);
    mlp_backward<T, lanes>(mlp, count, length, s.grad, nullptr, s.moved);
    normalise_back<T, lanes>(C, length, sizes.eps, s.x, nullptr, s.moved, s.moved);
    for (int64_t i = 0; i < C * length; i += lanes) {
        store<T, lanes>(s.grad + i, load<T, lanes>(s.grad + i) + load<T, lanes>(s.moved + i));
    }
    turn_out<T, lanes>(count, C, s.grad, length, x_grad.token, x_grad.map);
}

template <class T, int lanes>
void finish(const MlpSizes<T>& sizes, T* scratch, const MlpGradients<T>& gradients) {
    const Scratch<T, lanes> s(sizes, scratch);
    add_columns(sizes.hidden, sizes.channels + 1, s.first, s.wide_width, gradients.first);
    add_columns(sizes.hidden + 1, sizes.channels, s.second, s.width, gradients.second);
}

template <class T, int lanes>
int64_t scratch(const MlpSizes<T>& sizes) {
    return Scratch<T, lanes>(sizes, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const MlpBackward<float> mlp_backward_float32 = {
    scratch<float, kFloats>, start<float, kFloats>, run<float, kFloats>, finish<float, kFloats>};
extern const MlpBackward<double> mlp_backward_float64 = {
    scratch<double, kDoubles>, start<double, kDoubles>, run<double, kDoubles>,
    finish<double, kDoubles>};

}  // namespace c2d::C2D_ISA
