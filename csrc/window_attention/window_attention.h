// What one instruction set offers for attention in windows: all the arithmetic of one head of one
// window. kernel.cpp defines it once per instruction set; the host side in host.cpp walks
// windows and heads, knows where tokens lie, and never multiplies.
#pragma once

#include <stdint.h>

namespace c2d {

// Channels [start, start + count) of a key's head lie side by side in one token of its cell.
struct Run {
    int64_t cell;     // which token of the key's cell of tokens
    int64_t channel;  // first channel there
    int64_t start, count;
};

// What all windows of a call have in common. Queries are handled in blocks of `block`, a multiple
// of the vector length; the last block may be partly empty.
template <class T>
struct AttentionSizes {
    int64_t queries, keys, head_dim;
    int64_t cell_tokens;  // tokens stacked into one key: 1, or 4
    int64_t block, blocks;
    T scale;
};

// One head of one window. Query n is q[q_token[n] ...]; the tokens of key m begin at
// key_token[m * cell_tokens]. Regions are null where nothing is masked.
template <class T>
struct AttentionHead {
    const T *q, *k, *v;
    const int64_t *q_token, *key_token;
    const Run* runs;
    int64_t run_count;
    const T* bias;  // [blocks][keys][block]
    const T *query_region, *key_region;
    // Not null: scores are this times the cosine of q and k, and sizes.scale is 1.
    const T* cosine = nullptr;
};

// Where one head's gradients come from and go to. bias is added to, the others are written.
template <class T>
struct AttentionGradients {
    const T* out;
    const int64_t* out_token;
    T *q, *k, *v;
    const int64_t *q_token, *key_token;
    T* bias;              // as AttentionHead::bias
    T* cosine = nullptr;  // of what AttentionHead::cosine points to; added to
};

template <class T>
struct AttentionKernels {
    int64_t lanes;  // elements of a vector
    // Elements of scratch memory, aligned to a vector, that a call needs.
    int64_t (*forward_scratch)(const AttentionSizes<T>& sizes);
    int64_t (*backward_scratch)(const AttentionSizes<T>& sizes);
    // out[out_token[n] ...] = softmax(scale q k^T + bias + mask) v
    void (*forward)(const AttentionSizes<T>& sizes, const AttentionHead<T>& head, T* out,
                    const int64_t* out_token, T* scratch);
    void (*backward)(const AttentionSizes<T>& sizes, const AttentionHead<T>& head,
                     const AttentionGradients<T>& grads, T* scratch);
};

#define C2D_DECLARE_ATTENTION(isa)                           \
    namespace isa {                                          \
    extern const AttentionKernels<float> attention_float32;  \
    extern const AttentionKernels<double> attention_float64; \
    }

C2D_DECLARE_ATTENTION(baseline)
#if defined(__x86_64__)
C2D_DECLARE_ATTENTION(avx2)
C2D_DECLARE_ATTENTION(avx512)
#endif

#undef C2D_DECLARE_ATTENTION

}  // namespace c2d
