// Attention in one head of one window on the CPU, one instruction set at a time: Swin (2103.14030)
// and, where a key is a cell of 2x2 tokens, SRFormer (2303.09735).
//
// Idea. Queries lie along the lanes of vectors, two vectors (a block) at a time. Scores are made
// transposed, S^T[key][query]: each key's channels are scalars, the block's queries are vectors
// for each channel. Maximum, sum and exponential over keys are then plain vector operations with no
// sum across lanes, and P^T is what the product with v wants: out^T[channel][query] adds a key's
// scalar v times its vector of probabilities. No product is padded along head_dim, which is 5 to 16
// in the light networks; only dk and dv, sums over queries, run over channels filled up to a
// vector. All five products are one register tile (product, below), and everything but the bias and
// the map itself stays in the first-level cache for windows of up to 16 x 16.
//
// The tokens of a window are copied once into scratch memory (q transposed and scaled), the bias
// is laid out as [block][key][query] once for all windows.
//
// Where attention is of cosines (Swin V2, 2111.09883), q is divided by its length and multiplied by
// the head's scale in scratch memory, and k by its length.
//
// Costs, multiply-adds for each pair of a query and a key: forward 2 head_dim and one exponential;
// backward 5 head_dim (S and dP, dq, dk, dv) and one exponential, dk and dv with head_dim filled
// up.
//
// What was measured: two threads of a Xeon (family 6, model 207; AVX-512), float32, one run of
// `pytest bench --benchmark` on a quiet machine (docs/benchmarks.md has it with its quartiles);
// kernel, reference and torch's scaled_dot_product_attention (windows copied, bias and mask as one
// dense tensor) in turn.
//                                                   ms   ratio to reference, to torch's attention
//   184 x 320 x 180, window 8, 6 heads, shift 4     23      5.0;  3.5
//     forward and backward                          81      3.3;  4.3
//   192 x 320 x 180, window 16, 6 heads, shift 8    71      5.4;  2.2
//     forward and backward                         231      3.2;  3.4
//   192 x 320 x 60, window 16, 6 heads, permuted,
//     shift 8                                       21      5.8;  -
//     forward and backward                          77      3.7;  -
//
// What was tried: no prediction was written first.
//   Starting the sum of scores from the bias, and one long sum over the keys: up to 3 times the
//     formula's rounding error at windows of 16 and 32. Now the bias is added last, and products
//     over keys are summed in parts of 32.
//   Weights down to exp(-100), the mask's: denormal in float32, they made a shifted layer 4.4 times
//     as slow as an unshifted one forward and 3 times backward, and scores from -90 down a layer 22
//     times. Now weights under 2^-64 are 0, and scores and shifts no longer matter to the time.
// Known and left: q, the output and its gradient are transposed a number at a time.
#include "../common/vector_math.h"
#include "softmax.h"
#include "window_attention.h"

namespace c2d::C2D_ISA {
namespace {

constexpr double kLeastSquare = 1e-24;  // of a length: shorter ones count as 1e-12

template <class T>
inline __attribute__((always_inline)) void copy(const T* from, int64_t count, T* to) {
    constexpr int some = 16 / sizeof(T);  // of a vector that every instruction set has
    if (count >= some) {
        for (int64_t i = 0; i + some < count; i += some) {
            store<T, some>(to + i, load<T, some>(from + i));
        }
        store<T, some>(to + count - some, load<T, some>(from + count - some));
    } else {
        for (int64_t i = 0; i < count; ++i) {
            to[i] = from[i];
        }
    }
}

// Scratch memory of a call, cut up. Rows are padded to vectors.
template <class T, int lanes>
struct Scratch {
    int64_t width, length;  // head_dim and queries, filled up
    int64_t elements;       // in all
    T *k, *v;               // [keys][width]
    T* q;                   // [head_dim][length], times scale
    T* scores;              // [keys][block]
    T* out;                 // [head_dim][block]
    // Of cosines only:
    T *q_factor, *k_factor;  // [length], [keys], 1 over the lengths
    // Of the backward only:
    T* grad = nullptr;                          // [head_dim][length]
    T *q_rows = nullptr, *grad_rows = nullptr;  // [length][width]
    T *dk = nullptr, *dv = nullptr;             // [keys][width]
    T* grad_scores = nullptr;                   // [keys][block]

    Scratch(const AttentionSizes<T>& sizes, T* memory, bool with_backward)
        : width(rounded_up(sizes.head_dim, lanes)), length(sizes.block * sizes.blocks) {
        const int64_t tokens = sizes.keys * width, map = sizes.head_dim * length;
        const int64_t square = sizes.keys * sizes.block;
        Cut<T> cut(memory);
        cut(k, tokens);
        cut(v, tokens);
        cut(q, map);
        cut(scores, square);
        cut(out, sizes.head_dim * sizes.block);
        cut(q_factor, length);
        cut(k_factor, rounded_up(sizes.keys, lanes));
        if (with_backward) {
            cut(grad, map);
            cut(q_rows, length * width);
            cut(grad_rows, length * width);
            cut(dk, tokens);
            cut(dv, tokens);
            cut(grad_scores, square);
        }
        elements = cut.elements();
    }
};

template <class T>
inline void gather_keys(const AttentionSizes<T>& sizes, const AttentionHead<T>& head, int64_t width,
                        const T* from, T* to) {
    for (int64_t m = 0; m < sizes.keys; ++m) {
        for (int64_t i = 0; i < head.run_count; ++i) {
            const Run& run = head.runs[i];
            copy(from + head.key_token[m * sizes.cell_tokens + run.cell] + run.channel, run.count,
                 to + m * width + run.start);
        }
    }
}

template <class T>
inline void scatter_keys(const AttentionSizes<T>& sizes, const AttentionHead<T>& head,
                         const int64_t* token, int64_t width, const T* from, T* to) {
    for (int64_t m = 0; m < sizes.keys; ++m) {
        for (int64_t i = 0; i < head.run_count; ++i) {
            const Run& run = head.runs[i];
            copy(from + m * width + run.start, run.count,
                 to + token[m * sizes.cell_tokens + run.cell] + run.channel);
        }
    }
}

// to[channel][query] = scale * from[query][channel], zero past the last query
template <class T>
inline void gather_transposed(const AttentionSizes<T>& sizes, const int64_t* token, const T* from,
                              T scale, int64_t length, T* to) {
    for (int64_t n = 0; n < sizes.queries; ++n) {
        const T* row = from + token[n];
        for (int64_t d = 0; d < sizes.head_dim; ++d) {
            to[d * length + n] = scale * row[d];
        }
    }
    for (int64_t d = 0; d < sizes.head_dim; ++d) {
        for (int64_t n = sizes.queries; n < length; ++n) {
            to[d * length + n] = 0;
        }
    }
}

// to[query][channel] = scale * from[query][channel], zero past head_dim
template <class T>
inline void gather_rows(const AttentionSizes<T>& sizes, const int64_t* token, const T* from,
                        T scale, int64_t width, T* to) {
    for (int64_t n = 0; n < sizes.queries; ++n) {
        const T* row = from + token[n];
        for (int64_t d = 0; d < width; ++d) {
            to[n * width + d] = d < sizes.head_dim ? scale * row[d] : T(0);
        }
    }
}

// Makes columns of q[channel][query] as long as `scale`; 1 over what they were goes to `factor`.
template <class T, int lanes>
inline void normalise_columns(int64_t channels, int64_t length, T scale, T* q, T* factor) {
    using V = Vector<T, lanes>;
    const V least = V{} + T(kLeastSquare);
    for (int64_t n = 0; n < length; n += lanes) {
        V square{};
        for (int64_t d = 0; d < channels; ++d) {
            const V x = load<T, lanes>(q + d * length + n);
            square += x * x;
        }
        const V inverse = T(1) / sqrt_of(square > least ? square : least), by = scale * inverse;
        store<T, lanes>(factor + n, inverse);
        for (int64_t d = 0; d < channels; ++d) {
            T* const at = q + d * length + n;
            store<T, lanes>(at, by * load<T, lanes>(at));
        }
    }
}

// Makes rows x[row][width] as long as 1 in their first `channels`; `factor` has room for whole
// vectors.
template <class T, int lanes>
inline void normalise_rows(int64_t rows, int64_t channels, int64_t width, T* x, T* factor) {
    using V = Vector<T, lanes>;
    const V least = V{} + T(kLeastSquare);
    for (int64_t row = 0; row < rows; row += lanes) {
        T squares[lanes]{};
        const int64_t some = rows - row < lanes ? rows - row : lanes;
        for (int64_t i = 0; i < some; ++i) {
            const T* const at = x + (row + i) * width;
            for (int64_t d = 0; d < channels; ++d) {
                squares[i] += at[d] * at[d];
            }
        }
        const V square = load<T, lanes>(squares);
        store<T, lanes>(factor + row, T(1) / sqrt_of(square > least ? square : least));
        for (int64_t i = 0; i < some; ++i) {
            T* const at = x + (row + i) * width;
            for (int64_t d = 0; d < channels; ++d) {
                at[d] *= factor[row + i];
            }
        }
    }
}

// q and k as scores are made of: q in s.q times its scale, k in s.k.
template <class T, int lanes>
inline void normalise(const AttentionSizes<T>& sizes, const AttentionHead<T>& head,
                      const Scratch<T, lanes>& s) {
    if (head.cosine == nullptr) {
        return;
    }
    normalise_columns<T, lanes>(sizes.head_dim, s.length, *head.cosine, s.q, s.q_factor);
    normalise_rows<T, lanes>(sizes.keys, sizes.head_dim, s.width, s.k, s.k_factor);
}

// From the gradient g of u scale, u = q / |q|, to that of q: factor scale (g - u (u.g)), in one
// block of [channel][query]. q holds u scale.
template <class T, int lanes>
inline void through_columns(int64_t channels, int64_t length, int64_t step, T scale, const T* q,
                            const T* factor, T* grad) {
    using V = Vector<T, lanes>;
    const T twice = scale * scale, unscaled = twice > 0 ? T(1) / twice : T(0);
    for (int64_t column = 0; column < step; column += lanes) {
        V dot{};
        for (int64_t d = 0; d < channels; ++d) {
            dot +=
                load<T, lanes>(q + d * length + column) * load<T, lanes>(grad + d * step + column);
        }
        const V along = dot * unscaled, by = scale * load<T, lanes>(factor + column);
        for (int64_t d = 0; d < channels; ++d) {
            T* const at = grad + d * step + column;
            const V across = load<T, lanes>(at) - along * load<T, lanes>(q + d * length + column);
            store<T, lanes>(at, by * across);
        }
    }
}

// The same of the keys, whose rows are u and grad's g. Returns the sum of u.g, the gradient of the
// scale.
template <class T>
inline T through_rows(int64_t rows, int64_t channels, int64_t width, T scale, const T* x,
                      const T* factor, T* grad) {
    T total = 0;
    for (int64_t row = 0; row < rows; ++row) {
        const T* const unit = x + row * width;
        T *const at = grad + row * width, dot = 0;
        for (int64_t d = 0; d < channels; ++d) {
            dot += unit[d] * at[d];
        }
        total += dot;
        for (int64_t d = 0; d < channels; ++d) {
            at[d] = scale * factor[row] * (at[d] - dot * unit[d]);
        }
    }
    return total;
}

// to[query][channel] = scale[query] * from[channel][query] for the queries of one block
template <class T>
inline void scatter_transposed(const AttentionSizes<T>& sizes, const int64_t* token, int64_t block,
                               const T* from, const T* scale, T* to) {
    const int64_t first = block * sizes.block;
    const int64_t left = sizes.queries - first;
    const int64_t count = left < sizes.block ? left : sizes.block;
    for (int64_t n = 0; n < count; ++n) {
        T* row = to + token[first + n];
        for (int64_t d = 0; d < sizes.head_dim; ++d) {
            row[d] = from[d * sizes.block + n] * scale[n];
        }
    }
}

// scores[key][query] = exp(s - max over keys) of one block, s = scale q k^T + bias + mask
template <class T, int lanes>
inline void exponentials(const AttentionSizes<T>& sizes, const AttentionHead<T>& head,
                         const Scratch<T, lanes>& s, int64_t block, Inverse<T, lanes>& inverse) {
    const int64_t step = sizes.block, keys = sizes.keys;
    product<T, lanes>({sizes.head_dim, s.k, s.width, 1, s.q + block * step, s.length,
                       head.bias + block * keys * step, s.scores, step},
                      keys, step);
    const T* region = head.query_region;
    softmax<T, lanes>(s.scores, keys, step, region == nullptr ? nullptr : region + block * step,
                      head.key_region, inverse);
}

template <class T, int lanes>
void forward(const AttentionSizes<T>& sizes, const AttentionHead<T>& head, T* out,
             const int64_t* out_token, T* scratch) {
    const Scratch<T, lanes> s(sizes, scratch, false);
    gather_keys(sizes, head, s.width, head.k, s.k);
    gather_keys(sizes, head, s.width, head.v, s.v);
    gather_transposed(sizes, head.q_token, head.q, sizes.scale, s.length, s.q);
    normalise(sizes, head, s);
    Inverse<T, lanes> inverse;
    for (int64_t block = 0; block < sizes.blocks; ++block) {
        exponentials<T, lanes>(sizes, head, s, block, inverse);
        long_product<T, lanes>(
            {sizes.keys, s.v, 1, s.width, s.scores, sizes.block, nullptr, s.out, sizes.block},
            sizes.head_dim, sizes.block);
        scatter_transposed(sizes, out_token, block, s.out, inverse.of, out);
    }
}

// With P the probabilities and dP = grad v^T:
//   dS = P (dP - sum over keys of P dP),  dbias = dS,  dq = scale dS k,  dk = scale dS^T q,
//   dv = P^T grad.
template <class T, int lanes>
void backward(const AttentionSizes<T>& sizes, const AttentionHead<T>& head,
              const AttentionGradients<T>& grads, T* scratch) {
    using V = Vector<T, lanes>;
    const Scratch<T, lanes> s(sizes, scratch, true);
    const int64_t step = sizes.block, keys = sizes.keys;
    gather_keys(sizes, head, s.width, head.k, s.k);
    gather_keys(sizes, head, s.width, head.v, s.v);
    gather_transposed(sizes, head.q_token, head.q, sizes.scale, s.length, s.q);
    gather_transposed(sizes, grads.out_token, grads.out, T(1), s.length, s.grad);
    gather_rows(sizes, head.q_token, head.q, sizes.scale, s.width, s.q_rows);
    normalise(sizes, head, s);
    for (int64_t n = 0; head.cosine != nullptr && n < sizes.queries; ++n) {
        for (int64_t d = 0; d < sizes.head_dim; ++d) {
            s.q_rows[n * s.width + d] *= s.q_factor[n];
        }
    }
    gather_rows(sizes, grads.out_token, grads.out, T(1), s.width, s.grad_rows);
    Inverse<T, lanes> inverse, scale;
    for (int64_t n = 0; n < step; ++n) {
        scale.of[n] = sizes.scale;
    }
    for (int64_t block = 0; block < sizes.blocks; ++block) {
        const int64_t first = block * step, left = sizes.queries - first;
        const int64_t count = left < step ? left : step;
        exponentials<T, lanes>(sizes, head, s, block, inverse);
        product<T, lanes>({sizes.head_dim, s.v, s.width, 1, s.grad + first, s.length, nullptr,
                           s.grad_scores, step},
                          keys, step);
        T* const bias = grads.bias + block * keys * step;
        for (int64_t column = 0; column < step; column += lanes) {
            const V factor = load<T, lanes>(inverse.of + column);
            Sums<T, lanes> sums;
#pragma GCC unroll 4
            for (int64_t m = 0; m < keys; ++m) {
                const int64_t at = m * step + column;
                const V power = factor * load<T, lanes>(s.scores + at);
                sums.add(m, power * load<T, lanes>(s.grad_scores + at));
                store<T, lanes>(s.scores + at, power);
            }
            const V sum = sums.total();
            for (int64_t m = 0; m < keys; ++m) {
                const int64_t at = m * step + column;
                const V change =
                    load<T, lanes>(s.scores + at) * (load<T, lanes>(s.grad_scores + at) - sum);
                store<T, lanes>(s.grad_scores + at, change);
                store<T, lanes>(bias + at, load<T, lanes>(bias + at) + change);
            }
        }
        long_product<T, lanes>({keys, s.k, 1, s.width, s.grad_scores, step, nullptr, s.out, step},
                               sizes.head_dim, step);
        if (head.cosine != nullptr) {
            through_columns<T, lanes>(sizes.head_dim, s.length, step, *head.cosine, s.q + first,
                                      s.q_factor + first, s.out);
        }
        scatter_transposed(sizes, grads.q_token, block, s.out, scale.of, grads.q);
        product<T, lanes>({count, s.scores, step, 1, s.grad_rows + first * s.width, s.width,
                           block == 0 ? nullptr : s.dv, s.dv, s.width},
                          keys, s.width);
        product<T, lanes>({count, s.grad_scores, step, 1, s.q_rows + first * s.width, s.width,
                           block == 0 ? nullptr : s.dk, s.dk, s.width},
                          keys, s.width);
    }
    if (head.cosine != nullptr) {
        *grads.cosine +=
            through_rows(keys, sizes.head_dim, s.width, *head.cosine, s.k, s.k_factor, s.dk);
    }
    scatter_keys(sizes, head, grads.key_token, s.width, s.dk, grads.k);
    scatter_keys(sizes, head, grads.key_token, s.width, s.dv, grads.v);
}

template <class T, int lanes>
int64_t forward_scratch(const AttentionSizes<T>& sizes) {
    return Scratch<T, lanes>(sizes, nullptr, false).elements;
}

template <class T, int lanes>
int64_t backward_scratch(const AttentionSizes<T>& sizes) {
    return Scratch<T, lanes>(sizes, nullptr, true).elements;
}

constexpr int kFloats = kVectorBytes / sizeof(float), kDoubles = kVectorBytes / sizeof(double);

}  // namespace

extern const AttentionKernels<float> attention_float32 = {
    kFloats, forward_scratch<float, kFloats>, backward_scratch<float, kFloats>,
    forward<float, kFloats>, backward<float, kFloats>};
extern const AttentionKernels<double> attention_float64 = {
    kDoubles, forward_scratch<double, kDoubles>, backward_scratch<double, kDoubles>,
    forward<double, kDoubles>, backward<double, kDoubles>};

}  // namespace c2d::C2D_ISA
