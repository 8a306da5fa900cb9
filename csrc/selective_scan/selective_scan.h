// What one instruction set offers for the selective scan: sweeps over a run of steps of one block
// of channels, forwards and backwards. kernel.cpp defines them once per instruction set; the host
// side in host.cpp cuts sequences into blocks and runs, hands states from run to run, and never
// touches an element.
#pragma once

#include <stdint.h>

namespace c2d {

constexpr int64_t kMostStates = 256;
constexpr int kForwardTile = 64;   // steps whose inputs are kept in cache while states are swept
constexpr int kBackwardTile = 16;  // fewer: the states of each step are kept as well

// A (channel, step) matrix in memory; null where an optional argument was not given.
template <class T>
struct Sequence {
    T* data = nullptr;
    int64_t channel_stride = 0, step_stride = 0;
};

// B or C: shared by the block's channels and changing with the step, or constant and each channel's
// own.
template <class T>
struct Mixing {
    const T* data = nullptr;
    int64_t channel_stride = 0, state_stride = 0, step_stride = 0;
    bool constant = false;
};

// A block of at most `lanes` channels of one image, all of one group of B and C.
template <class T>
struct ScanBlock {
    int64_t channels, states;
    bool softplus;
    Sequence<const T> u, delta, z;
    Mixing<T> B, C;
    const T *A, *D, *delta_bias;  // (channels, states), (channels), (channels); dense
    Sequence<T> y;
};

// States of a block before every kBackwardTile-th step: channels lie side by side.
template <class T>
struct Checkpoints {
    T* data = nullptr;
    int64_t tile_stride = 0, state_stride = 0;
};

// Where the gradients of a block go; null where nobody asked.
template <class T>
struct ScanGradients {
    Sequence<const T> dy;
    Sequence<T> du, ddelta, dz;
    // The sums of dB and dC over the block's channels, 2 * padded_states numbers per step in the
    // order that sum_mixing reads; added to what is there if `accumulate`.
    T* mixing;
    bool accumulate;
    // Sums over the steps, added to what is there, one vector of channels per entry: dA and, where
    // B or C is constant, dB and dC (padded_states entries); dD and ddelta_bias (one).
    T *dA, *dB, *dC, *dD, *ddelta_bias;
};

// States and adjoints are T[padded_states][lanes], a vector of channels for each state.
template <class T>
struct ScanKernels {
    int lanes;
    int64_t (*padded_states)(int64_t states);

    // Steps begin..end - 1 from `state` on, which is left at the state after the last one. Writes y
    // if the block has one, the state before every kBackwardTile-th step to `checkpoints` if there
    // are any, and adds delta to the vector `delta_sum` unless it is null.
    void (*forward)(const ScanBlock<T>& block, int64_t begin, int64_t end, T* state, T* delta_sum,
                    Checkpoints<T> checkpoints);

    // Steps end - 1..begin. `adjoint` is what the loss gains by the state after step end - 1
    // through all that follows, and on return the same for the state before step begin.
    void (*adjoint)(const ScanBlock<T>& block, Sequence<const T> dy, int64_t begin, int64_t end,
                    T* adjoint);

    // The same with every gradient; `checkpoints` are those of forward for these steps.
    void (*backward)(const ScanBlock<T>& block, const ScanGradients<T>& gradients, int64_t begin,
                     int64_t end, Checkpoints<const T> checkpoints, T* adjoint);

    // Over a whole run of steps: to = 2^(A log2 e * delta_sum) * from + local.
    void (*join)(const ScanBlock<T>& block, const T* delta_sum, const T* from, const T* local,
                 T* to);

    // Sums `count` buffers of ScanGradients::mixing over `steps` steps, in their order, into dB and
    // dC (state_stride between states, 1 between steps); null: not wanted.
    void (*sum_mixing)(const T* const* parts, int64_t count, int64_t states, int64_t steps, T* dB,
                       T* dC, int64_t state_stride);
};

#define C2D_DECLARE_SCAN(isa)                      \
    namespace isa {                                \
    extern const ScanKernels<float> scan_float32;  \
    extern const ScanKernels<double> scan_float64; \
    }

C2D_DECLARE_SCAN(baseline)
#if defined(__x86_64__)
C2D_DECLARE_SCAN(avx2)
C2D_DECLARE_SCAN(avx512)
#endif

#undef C2D_DECLARE_SCAN

}  // namespace c2d
