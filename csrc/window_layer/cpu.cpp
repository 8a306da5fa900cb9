// A layer of a transformer in windows on the CPU (SwinIR, 2108.10257), one instruction set at a
// time: y = x + proj(attention(qkv(LN(x)))), then y + fc2(GELU(fc1(LN(y)))), one window after the
// other.
//
// Idea. Nothing but x and the result touches main memory: all that a window of 64 tokens makes on
// its way (qkv, scores, hidden features) stays in the first two levels of cache, and so do the
// weights. Features lie turned round, [channel][token]: every product then has weights for scalars
// and tokens along the lanes, channels are never filled up to a vector, norms and softmax need no
// sum across lanes, and q, k and v are used where the product left them. Tokens are turned on their
// way in and out, a square of vectors at a time. A bias is the weight of one more channel that is
// always 1; a residual is what the product starts from.
//
// Costs, multiply-adds a token: 4 C^2 + 2 C hidden + 2 tokens C, and an exponential for each pair
// of tokens and head. Bytes: 2 C.
//
// What was measured: two cores of an AMD EPYC (Zen 5, AVX-512) in a shared virtual machine,
// float32, 184 x 320 x 60, hidden 120, window 8, 6 heads, shift 4, by the benchmarks: 15.4 ms, the
// reference 192 ms (11.9 times as long), torch.compile of the reference 143 ms. That is 280
// GFLOP/s; composed of window_attention and torch's products the layer took 59 ms. Predicted was 28
// ms, from the 150 GFLOP/s that torch's large products reach here: products out of cache turned out
// faster.
#include "../common/tokens.h"
#include "../window_attention/softmax.h"
#include "window_layer.h"

namespace c2d::C2D_ISA {
namespace {

// Scratch memory of a call, cut up: rows of `length` tokens.
template <class T, int lanes>
struct Scratch {
    int64_t length, elements = 0;
    T *x, *norm, *qkv, *hidden, *scores;

    Scratch(const LayerSizes<T>& sizes, T* memory) : length(sizes.block * sizes.blocks) {
        const int64_t C = sizes.channels;
        const int64_t wide = 3 * C > sizes.hidden + 1 ? 3 * C : sizes.hidden + 1;
        T** const parts[] = {&x, &norm, &qkv, &scores};
        const int64_t counts[] = {C * length, (C + 1) * length, wide * length,
                                  sizes.tokens * sizes.block};
        for (int i = 0; i < 4; ++i) {
            *parts[i] = memory == nullptr ? nullptr : memory + elements;
            elements += rounded_up(counts[i], lanes);
        }
        hidden = qkv;  // which is used up by then
    }
};

// Attention of all heads; its result takes the place of the norm in s.norm, above the row of ones.
template <class T, int lanes>
inline void attend(const LayerSizes<T>& sizes, const LayerWeights<T>& weights,
                   const LayerWindow<T>& window, const Scratch<T, lanes>& s) {
    const int64_t C = sizes.channels, step = sizes.block, keys = sizes.tokens;
    const int64_t head_dim = C / sizes.heads, length = s.length;
    const T* bias = weights.bias;
    Inverse<T, lanes> inverse;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        const T* const q = s.qkv + head * head_dim * length;
        const T* const k = q + C * length;
        const T* const v = k + C * length;
        T* const out = s.norm + head * head_dim * length;
        for (int64_t first = 0; first < length; first += step, bias += keys * step) {
            product<T, lanes>({head_dim, k, 1, length, q + first, length, bias, s.scores, step},
                              keys, step);
            softmax<T, lanes>(s.scores, keys, step,
                              window.region == nullptr ? nullptr : window.region + first,
                              window.region, inverse);
            long_product<T, lanes>(
                {keys, v, length, 1, s.scores, step, nullptr, out + first, length}, head_dim, step);
            for (int64_t column = 0; column < step; column += lanes) {
                const Vector<T, lanes> factor = load<T, lanes>(inverse.of + column);
                for (int64_t d = 0; d < head_dim; ++d) {
                    T* const at = out + d * length + first + column;
                    store<T, lanes>(at, factor * load<T, lanes>(at));
                }
            }
        }
    }
}

template <class T, int lanes>
void run(const LayerSizes<T>& sizes, const LayerWeights<T>& weights, const LayerWindow<T>& window,
         T* scratch) {
    const Scratch<T, lanes> s(sizes, scratch);
    const int64_t C = sizes.channels, hidden = sizes.hidden, length = s.length;
    turn_in<T, lanes>(sizes.tokens, C, window.x, window.x_token, length, s.x);
    normalise<T, lanes>(C, length, sizes.eps, s.x, s.norm);
    ones<T, lanes>(length, s.norm + C * length);
    multiply<T, lanes>(3 * C, C + 1, length, weights.qkv, s.norm, false, s.qkv);
    attend<T, lanes>(sizes, weights, window, s);
    multiply<T, lanes>(C, C + 1, length, weights.proj, s.norm, true, s.x);
    normalise<T, lanes>(C, length, sizes.eps, s.x, s.norm);
    multiply<T, lanes>(hidden, C + 1, length, weights.first, s.norm, false, s.hidden);
    activate<T, lanes>(hidden, length, s.hidden);
    multiply<T, lanes>(C, hidden + 1, length, weights.second, s.hidden, true, s.x);
    turn_out<T, lanes>(sizes.tokens, C, s.x, length, window.out_token, window.out);
}

template <class T, int lanes>
int64_t scratch(const LayerSizes<T>& sizes) {
    return Scratch<T, lanes>(sizes, nullptr).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const LayerKernels<float> layer_float32 = {kFloats, scratch<float, kFloats>,
                                                  run<float, kFloats>};
extern const LayerKernels<double> layer_float64 = {kDoubles, scratch<double, kDoubles>,
                                                   run<double, kDoubles>};

}  // namespace c2d::C2D_ISA
