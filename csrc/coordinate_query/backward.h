// What one instruction set offers for the coordinate query in training: a segment of the decoder
// over a chunk of queries, forwards and backwards. backward_kernel.cpp defines it once per
// instruction set; the host side in backward_host.cpp cuts queries into chunks and adds up what
// chunks give.
//
// A segment ends at a linear attention's k^T v, the last one at the RGB: all queries must have
// reached its end before any may go on. It begins with what follows the attention before it.
#pragma once

#include <stdint.h>

#include "coordinate_query.h"

namespace c2d {

constexpr int64_t kSegmentChunk = 64;  // queries on their way together

// A Linear, in both orientations, filled up to whole vectors: `forward` [inputs + 1][outputs], with
// the bias for an input that is always 1; `back` [outputs][inputs]. Its gradient, in the shape of
// `forward`, lies at `at` among a task's.
template <class T>
struct TwoWays {
    const T *forward, *back;
    int64_t inputs, outputs, at;
};

template <class T>
struct QuerySegment {
    int64_t width, heads, levels;
    bool first;  // it begins with LR features, the others with the fold of an attention and proj2
    bool sums;   // it ends at a k^T v
    TwoWays<T> proj2;  // unless it is the first
    TwoWays<T> fc1[kMostLevels], fc2[kMostLevels];
    TwoWays<T> key_value;  // if it sums
    const T* norms;        // gain and bias of keys, then of values: [4][d]
    const T *moment_grad,
        *moment_grad_transposed;  // of an image, [heads][d][d], rows whole vectors
    int64_t norms_at, gradients;  // numbers of a task's gradients, whole vectors

    int64_t head_dim() const { return width / heads; }
};

template <class T>
struct SegmentChunk {
    int64_t count;
    const T* features[kNeighbours][kSegmentChunk];  // of the neighbours, in the first segment
    T weight[kNeighbours][kSegmentChunk];           // theirs
    T rel_cell[kCoordinates];
    T digits[kCoordinates * kMostLevels][kSegmentChunk];  // y and x of each level of the segment
    const T* state;                                       // [count][width], in the other segments
    TwoWays<T> fold;                                      // unless it is the first
};

template <class T>
struct SegmentKernels {
    int64_t lanes;
    int64_t (*scratch)(const QuerySegment<T>& segment);

    // Leaves the state, [count][width], in `out` and adds k^T v to moments[heads][d][d]; of the
    // last segment, RGB [count][3] without the bilinear picture.
    void (*forward)(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk, T* scratch,
                    T* out, double* moments);

    // From the gradient of the segment's result, [count][width] or of RGB [count][3], to that of
    // its input: [count][width], or in the first segment [count][kNeighbours][width] of the
    // neighbours' features. Adds to the task's gradients.
    void (*backward)(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk, T* scratch,
                     const T* grad, T* out, T* gradients);
};

#define C2D_DECLARE_SEGMENT(isa)                         \
    namespace isa {                                      \
    extern const SegmentKernels<float> segment_float32;  \
    extern const SegmentKernels<double> segment_float64; \
    }

C2D_DECLARE_SEGMENT(baseline)
#if defined(__x86_64__)
C2D_DECLARE_SEGMENT(avx2)
C2D_DECLARE_SEGMENT(avx512)
#endif

#undef C2D_DECLARE_SEGMENT

}  // namespace c2d
