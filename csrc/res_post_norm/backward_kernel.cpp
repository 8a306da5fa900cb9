// The backward of the part of a res-post-norm layer that sees one token at a time (HiT-SR,
// 2407.05878) on the CPU, one instruction set at a time.
//
// With m = proj([parts]), y = x + LN(m), p = fc1(y), h = GELU(p), o = fc2(h), out = y + LN(o):
//   do through the second norm, dp = (fc2^T do) GELU'(p), dy = dout + fc1^T dp = dx,
//   dm through the first norm, dparts = proj^T dm;
//   dfc2 = do h^T, dfc1 = dp y^T, dproj = dm [parts]^T, summed over tokens.
// Without an MLP out = y and dy = dout.
//
// Idea. Nothing is kept from the forward: 64 tokens go through it again, in the layout of
// layer.h, and at once back, while they, the weights and the weights' gradients stay in the
// first two levels of cache. Main memory sees x, the parts, dout, dx and dparts.
//
// Costs, multiply-adds per token: 3 C inputs + 6 C hidden. Bytes: 3 C + 2 inputs.
//
// What was measured: one thread of a Xeon (family 6, model 207; AVX-512) in a shared virtual
// machine, float32, 4 x 64 x 64 x 60, two parts of 30, hidden 120, forward and backward, kernel and
// reference in turn, medians of processor time: the reference takes 1.4 times as long; 1.3 was
// predicted. A training step of HiET-SwinIR was 1.46 to 1.48 times as fast as the reference's
// without this kernel and is 1.53 to 1.65 times as fast with it; 1.64 was predicted.
// Where the time goes: 72 % to the products, at 61 GMAC/s where a large matrix product has 63 to
// 75. A third of them is the forward again; to keep it would be 360 numbers per token written and
// read, predicted to take as long, and was not tried.
// Without an MLP, two parts of 30, forward and backward: torch's cat, addmm, LayerNorm and add take
// 1.0 times as long on 8 x 64 x 64 x 60 and 1.4 times on 180 x 320 x 60; 1.3 was predicted. With
// bfloat16, which is computed in float32 here, they take 1.1 and 0.9 times as long.
#include "../common/mlp_gradients.h"
#include "backward.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of kTokens tokens, tokens as rows, and sums.
template <class T, int lanes>
struct Scratch {
    int64_t wide_width, width;         // C + 1 and C, filled up
    T *input, *y, *hidden, *slope;     // [inputs + 1], [C + 1], [hidden + 1], [hidden]
    T *mixed1, *mixed2, *grad, *wide;  // [C], [C], [C], [hidden or inputs]
    T* rows;                           // [kTokens][wide_width]
    int64_t sums_at, elements;         // sums are the last
    T *proj, *first, *second, *norm1, *norm2;

    Scratch(const PostNormSizes<T>& sizes, T* memory)
        : wide_width(rounded_up(sizes.channels + 1, lanes)),
          width(rounded_up(sizes.channels, lanes)) {
        const int64_t C = sizes.channels, inputs = sizes.inputs, wide_rows = sizes.hidden;
        Cut<T> cut(memory);
        cut(input, (inputs + 1) * kTokens);
        cut(y, (C + 1) * kTokens);
        cut(hidden, (wide_rows + 1) * kTokens);
        cut(slope, wide_rows * kTokens);
        cut(mixed1, C * kTokens);
        cut(mixed2, C * kTokens);
        cut(grad, C * kTokens);
        cut(wide, (inputs > wide_rows ? inputs : wide_rows) * kTokens);
        cut(rows, kTokens * wide_width);
        sums_at = cut.elements();
        cut(proj, (inputs + 1) * width);
        cut(first, wide_rows * wide_width);
        cut(second, (wide_rows + 1) * width);
        cut(norm1, 2 * C * lanes);
        cut(norm2, 2 * C * lanes);
        elements = cut.elements();
    }
};

template <class T, int lanes>
void start(const PostNormSizes<T>& sizes, T* scratch) {
    const Scratch<T, lanes> s(sizes, scratch);
    for (int64_t i = s.sums_at; i < s.elements; ++i) {
        scratch[i] = 0;
    }
}

// The MLP as in layer.h: y becomes x + LN(m), from x there; and back: s.grad becomes the gradient
// of y, from that of the result there.
template <class T, int lanes>
void mlp_there_and_back(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights,
                        int64_t count, int64_t length, const Scratch<T, lanes>& s) {
    const int64_t C = sizes.channels, hidden = sizes.hidden;
    ones<T, lanes>(length, s.y + C * length);
    add_normalised<T, lanes>(C, length, sizes.eps, s.mixed1, weights.norm1, weights.norm1 + C, s.y);
    const MlpRows<T> mlp = {C,        hidden,  weights.first, weights.second, s.y,
                            s.hidden, s.slope, s.wide,        s.rows,         s.wide_width,
                            s.width,  s.first, s.second};
    mlp_forward<T, lanes>(mlp, length);
    multiply<T, lanes>(C, hidden + 1, length, weights.second, s.hidden, false, s.mixed2);
    normalise_back<T, lanes>(C, length, sizes.eps, s.mixed2, weights.norm2, s.grad, s.mixed2,
                             nullptr, s.norm2);
    mlp_backward<T, lanes>(mlp, count, length, s.mixed2, s.grad, s.grad);
}

template <class T, int lanes>
void run(const PostNormSizes<T>& sizes, const PostNormWeights<T>& weights,
         const PostNormBackwardTokens<T>& tokens, T* scratch) {
    const Scratch<T, lanes> s(sizes, scratch);
    const int64_t C = sizes.channels, inputs = sizes.inputs;
    const int64_t count = tokens.count, length = rounded_up(count, lanes);
    T* input = s.input;
    for (int64_t p = 0; p < sizes.parts; ++p) {
        turn_in<T, lanes>(count, sizes.part_channels[p], tokens.parts[p].map, tokens.parts[p].token,
                          length, input);
        input += sizes.part_channels[p] * length;
    }
    ones<T, lanes>(length, input);
    multiply<T, lanes>(C, inputs + 1, length, weights.proj, s.input, false, s.mixed1);
    turn_in<T, lanes>(count, C, tokens.grad.map, tokens.grad.token, length, s.grad);
    if (weights.norm2 != nullptr) {
        turn_in<T, lanes>(count, C, tokens.x.map, tokens.x.token, length, s.y);
        mlp_there_and_back<T, lanes>(sizes, weights, count, length, s);
    }
    turn_out<T, lanes>(count, C, s.grad, length, tokens.x_grad.token, tokens.x_grad.map);

    // The gradient of proj's result, and of what it takes.
    normalise_back<T, lanes>(C, length, sizes.eps, s.mixed1, weights.norm1, s.grad, s.mixed1,
                             nullptr, s.norm1);
    token_rows<T, lanes>(count, C, s.mixed1, length, s.width, s.rows);
    add_products<T, lanes>(inputs + 1, count, s.input, length, s.rows, s.width, s.proj);
    product<T, lanes>({C, weights.proj, 1, inputs + 1, s.mixed1, length, nullptr, s.wide, length},
                      inputs, length);
    const T* part = s.wide;
    for (int64_t p = 0; p < sizes.parts; ++p) {
        turn_out<T, lanes>(count, sizes.part_channels[p], part, length, tokens.part_grads[p].token,
                           tokens.part_grads[p].map);
        part += sizes.part_channels[p] * length;
    }
}

template <class T, int lanes>
void finish(const PostNormSizes<T>& sizes, T* scratch, const PostNormGradients<T>& gradients) {
    const Scratch<T, lanes> s(sizes, scratch);
    const int64_t C = sizes.channels;
    add_columns(sizes.inputs + 1, C, s.proj, s.width, gradients.proj);
    add_lanes<T, lanes>(2 * C, s.norm1, gradients.norm1);
    if (gradients.norm2 != nullptr) {
        add_columns(sizes.hidden, C + 1, s.first, s.wide_width, gradients.first);
        add_columns(sizes.hidden + 1, C, s.second, s.width, gradients.second);
        add_lanes<T, lanes>(2 * C, s.norm2, gradients.norm2);
    }
}

template <class T, int lanes>
int64_t scratch(const PostNormSizes<T>& sizes) {
    return Scratch<T, lanes>(sizes, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const PostNormBackward<float> post_norm_backward_float32 = {
    scratch<float, kFloats>, start<float, kFloats>, run<float, kFloats>, finish<float, kFloats>};
extern const PostNormBackward<double> post_norm_backward_float64 = {
    scratch<double, kDoubles>, start<double, kDoubles>, run<double, kDoubles>,
    finish<double, kDoubles>};

}  // namespace c2d::C2D_ISA
