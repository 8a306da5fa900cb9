// What the CUDA kernels of the selective scan share: their arguments, the cut into chunks and
// blocks of channels, and tiles in shared memory. No torch here: tests/cuda_emulation compiles the
// same kernels as C++ and runs them on the CPU.
//
// Sixteen threads, half a warp, hold sixteen channels of one chunk of kChunk steps; a block is
// kSlots such chunks. Inputs come in tiles of a few steps through shared memory, read along
// whichever of channel and step lies side by side, so that (B, D, L) and (B, L, D) are both read in
// whole sectors. A tile belongs to its half warp alone: only __syncwarp is needed.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define C2D_LAUNCH(kernel, grid, block, stream, ...) \
    kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define C2D_KERNEL __global__ __launch_bounds__(kThreads)
#endif

#define C2D_SCAN_FUNCTION __device__ __forceinline__
#define C2D_SCAN_NAMESPACE c2d::cuda

namespace c2d::cuda {

template <class V>
using Scalar = float;
template <class V>
C2D_SCAN_FUNCTION V broadcast(float value) {
    return value;
}
C2D_SCAN_FUNCTION float exp2_of(float x) { return exp2f(x); }
C2D_SCAN_FUNCTION float maximum(float a, float b) { return a > b ? a : b; }
C2D_SCAN_FUNCTION float select(bool condition, float a, float b) { return condition ? a : b; }

}  // namespace c2d::cuda

#include "scan.h"

namespace c2d::cuda {

constexpr int kLanes = 16;  // channels of a half warp
constexpr int kSlots = 8;   // chunks of a block
constexpr int kThreads = kLanes * kSlots;
constexpr int kChunk = 64;        // steps of a chunk
constexpr int kForwardTile = 16;  // steps of a tile forwards
constexpr int kBackwardTile = 4;  // and backwards, where the states of each step are kept
constexpr int kMostForward = 16;  // states swept at once; more states take more launches
constexpr int kMostBackward = 8;  // 16 would spill registers
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int64_t kMostImages = 65535;  // a grid's limit along its second and third axis

// Numbers of a channel's sums over steps: dA, dB and dC of each state, dD and d(delta_bias).
constexpr int sum_numbers(int states) { return 3 * states + 2; }

// A (batch, channel, step) tensor; null where an optional one was not given.
struct Sequence {
    void* data = nullptr;
    int64_t image = 0, channel = 0, step = 0;  // strides
};

// B or C: (batch, groups, states, steps) in the type of u, or constant (channels, states) in float.
struct Mixing {
    const void* data = nullptr;
    int64_t image = 0, group = 0, state = 0, step = 0;  // strides; constant: group is a channel's
    int64_t width = 1;                                  // channels of a group
    bool constant = false;
};

// The operator's arguments and a plan of the work. All workspace is float.
struct Scan {
    int64_t batch, channels, states, length;
    bool softplus;
    Sequence u, delta, z, y, dy, du, ddelta, dz;
    Mixing B, C;
    const float *A, *D, *delta_bias;  // (channels, states), (channels), (channels); dense
    float* last_state;                // (batch, channels, states), dense
    const float* grad_last_state;

    // Filled by plan().
    int64_t chunks;        // of a sequence
    int64_t blocks;        // of channels: at most kLanes, within one group of B and of C
    int64_t group_width;   // channels that blocks do not cross
    int64_t group_blocks;  // blocks of so many channels
    int padded;            // states swept at once: 4, 8 or 16
    int first;             // the first state of this launch
    bool begins, ends;     // this launch holds the first states, the last states

    float* delta_sums;   // (batch, channels, chunks)
    float* states_at;    // (batch, channels, padded, chunks): end states, then the states before
    float* adjoints_at;  // the same of the adjoints, then those after
    float* unfinished;   // (3, batch, channels, length): sums over the states of earlier launches
    float* parts;        // (batch, blocks, length, 2 padded): dB and dC of a block
    float* sums;         // (batch * chunks, channels, sum_numbers): dA, dB, dC, dD, d(delta_bias)
    float *dA, *dB, *dC, *dD,
        *ddelta_bias;  // results, float; dB, dC (batch, groups, states, steps)
};

inline int64_t common_divisor(int64_t a, int64_t b) {
    return b == 0 ? a : common_divisor(b, a % b);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `most` is the number of states that the kernels to come sweep at once: 8 or 16.
inline void plan(Scan& scan, int most) {
    const int64_t all = scan.channels;
    scan.chunks = divide_up(scan.length, kChunk);
    scan.group_width =
        common_divisor(scan.B.constant ? all : scan.B.width, scan.C.constant ? all : scan.C.width);
    scan.group_blocks = divide_up(scan.group_width, kLanes);
    scan.blocks = all / scan.group_width * scan.group_blocks;
    scan.padded = scan.states <= 4 ? 4 : scan.states <= 8 ? 8 : most;
}

template <int number>
struct Constant {
    static constexpr int value = number;
};

// Calls launch(Constant<scan.padded>()), which is 4, 8 or `most`.
template <int most, class Launch>
void with_padded(const Scan& scan, const Launch& launch) {
    if (scan.padded == 4) {
        launch(Constant<4>());
    } else if (scan.padded == 8) {
        launch(Constant<8>());
    } else {
        launch(Constant<most>());
    }
}

// Calls launch() with scan.first, .begins and .ends set, once for every scan.padded states.
template <class Launch>
void for_states(Scan& scan, const Launch& launch) {
    for (scan.first = 0; scan.first < scan.states; scan.first += scan.padded) {
        scan.begins = scan.first == 0;
        scan.ends = scan.first + scan.padded >= scan.states;
        launch();
    }
}

#if defined(__CUDACC__) || defined(C2D_CUDA_ON_CPU)

template <class In>
C2D_SCAN_FUNCTION float to_float(In x) {
    return static_cast<float>(x);
}

// What a thread works on: `lane` of a block of channels, in chunk number `chunk` of an image.
struct Place {
    int lane, slot, count;  // count: channels of the block
    int64_t image, block, first_channel, chunk, begin;
    bool has_channel, has_chunk;

    C2D_SCAN_FUNCTION explicit Place(const Scan& scan) {
        lane = threadIdx.x % kLanes;
        slot = threadIdx.x / kLanes;
        image = blockIdx.z;
        block = blockIdx.y;
        chunk = static_cast<int64_t>(blockIdx.x) * kSlots + slot;
        const int64_t group = block / scan.group_blocks;
        const int64_t inside = block % scan.group_blocks * kLanes;
        first_channel = group * scan.group_width + inside;
        const int64_t left = scan.group_width - inside;
        count = left < kLanes ? static_cast<int>(left) : kLanes;
        has_channel = lane < count;
        has_chunk = chunk < scan.chunks;
        begin = chunk * kChunk;
    }
    C2D_SCAN_FUNCTION int64_t channel() const { return first_channel + lane; }

    // Steps of the tile at `offset` of the chunk.
    C2D_SCAN_FUNCTION int steps(const Scan& scan, int offset, int tile) const {
        const int64_t left = scan.length - begin - offset;
        return !has_chunk || left <= 0 ? 0 : left < tile ? static_cast<int>(left) : tile;
    }
};

// A tile of a sequence in shared memory: [step][channel], a column more against bank conflicts.
template <int tile>
struct Tile {
    float values[tile][kLanes + 1];
};

template <class In, int tile>
C2D_SCAN_FUNCTION void load_tile(const Sequence& from, const Place& place, int offset, int steps,
                                 Tile<tile>& to) {
    const In* data = static_cast<const In*>(from.data) + place.image * from.image +
                     place.first_channel * from.channel + (place.begin + offset) * from.step;
    if (from.step == 1 && from.channel != 1) {
        for (int i = place.lane; i < tile * kLanes; i += kLanes) {
            const int channel = i / tile, step = i % tile;
            to.values[step][channel] = channel < place.count && step < steps
                                           ? to_float(data[channel * from.channel + step])
                                           : 0.0f;
        }
        return;
    }
    for (int step = 0; step < tile; ++step) {
        to.values[step][place.lane] =
            place.has_channel && step < steps
                ? to_float(data[place.lane * from.channel + step * from.step])
                : 0.0f;
    }
}

template <class In, int tile>
C2D_SCAN_FUNCTION void store_tile(const Sequence& to, const Place& place, int offset, int steps,
                                  const Tile<tile>& from) {
    In* data = static_cast<In*>(to.data) + place.image * to.image +
               place.first_channel * to.channel + (place.begin + offset) * to.step;
    if (to.step == 1 && to.channel != 1) {
        for (int i = place.lane; i < tile * kLanes; i += kLanes) {
            const int channel = i / tile, step = i % tile;
            if (channel < place.count && step < steps) {
                data[channel * to.channel + step] = static_cast<In>(from.values[step][channel]);
            }
        }
        return;
    }
    for (int step = 0; step < steps; ++step) {
        if (place.has_channel) {
            data[place.lane * to.channel + step * to.step] =
                static_cast<In>(from.values[step][place.lane]);
        }
    }
}

// A tile of B or C: [step][state], zero for states that are not there. Constant matrices are read
// by each thread for its channel instead.
template <int tile, int states>
struct MixingTile {
    float values[tile][states];
};

template <class In, int tile, int states>
C2D_SCAN_FUNCTION void load_mixing(const Scan& scan, const Mixing& from, const Place& place,
                                   int offset, int steps, MixingTile<tile, states>& to) {
    if (from.constant) {
        return;
    }
    const In* data = static_cast<const In*>(from.data) + place.image * from.image +
                     place.first_channel / from.width * from.group + scan.first * from.state +
                     (place.begin + offset) * from.step;
    const int present =
        scan.states - scan.first < states ? static_cast<int>(scan.states - scan.first) : states;
    for (int i = place.lane; i < tile * states; i += kLanes) {
        const bool along_steps = from.step == 1;
        const int step = along_steps ? i % tile : i / states;
        const int state = along_steps ? i / tile : i % states;
        to.values[step][state] = state < present && step < steps
                                     ? to_float(data[state * from.state + step * from.step])
                                     : 0.0f;
    }
}

// A thread's own states of a (channels, states) matrix, times `factor`; zero where there are none.
template <int states>
C2D_SCAN_FUNCTION void load_own(const Scan& scan, const Place& place, const void* matrix,
                                int64_t channel_stride, int64_t state_stride, float factor,
                                float (&own)[states]) {
    const float* row = static_cast<const float*>(matrix) + place.channel() * channel_stride +
                       scan.first * state_stride;
#pragma unroll
    for (int n = 0; n < states; ++n) {
        own[n] = place.has_channel && scan.first + n < scan.states ? row[n * state_stride] * factor
                                                                   : 0.0f;
    }
}

// Where the state n of a thread's channel and chunk lies in states_at and adjoints_at.
template <int states>
C2D_SCAN_FUNCTION int64_t state_place(const Scan& scan, const Place& place, int n) {
    return ((place.image * scan.channels + place.channel()) * states + n) * scan.chunks +
           place.chunk;
}

C2D_SCAN_FUNCTION float step_size(const Scan& scan, float raw, float bias, float& slope) {
    slope = 1.0f;
    return scan.softplus ? softplus(raw + bias, slope) : raw + bias;
}

#endif

}  // namespace c2d::cuda
