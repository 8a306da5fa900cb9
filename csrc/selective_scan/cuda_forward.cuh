// The selective scan on a GPU, forwards. The equations are in scan.h, the mapping in cuda_scan.h.
//
// Idea. Three phases, parallel over images, channels and chunks of 64 steps: (1) each chunk's end
// state from zero and the sum of its delta; (2) since A does not depend on the step, a chunk's
// decay is 2^(A log2 e * sum of delta): a scan over the chunks gives the state before each; (3)
// each chunk again from its true state, with outputs. A sequence of one chunk is phase 3 alone.
//
// Bytes per step at D = 48, N = 8, float32: u, delta and B twice, C and y once: 1056; the states
// between chunks, written, scanned in place and read, add 4 (N + 1) D / 64 numbers, 108. One pass
// would move 640. Two exponentials per state and step are 768 a step.
//
// ptxas, sm_80 and sm_90 (cuda_resources.json has every kernel, a test compares): the second sweep
// at 8 states takes 96 registers and 25.6 KB of shared memory, 128 and 33.8 KB at 16; no spills.
// Predicted, not measured: at L = 230,400 on an H200, 1164 bytes per step at 4.8 TB/s are 56 us,
// and 177 million exponentials at 16 per clock and multiprocessor, 1.8 GHz, 47 us beside them; with
// launch gaps 80 us, that is about 40 % of the bandwidth by 640 bytes per step.
#pragma once

#include "cuda_scan.h"

namespace c2d::cuda {

#if defined(__CUDACC__) || defined(C2D_CUDA_ON_CPU)

// Phases 1 (outputs = false) and 3.
template <class In, int states, bool outputs>
C2D_KERNEL void sweep(Scan scan) {
    constexpr int tile = kForwardTile;
    __shared__ Tile<tile> u_tiles[kSlots], delta_tiles[kSlots];
    __shared__ MixingTile<tile, states> B_tiles[kSlots], C_tiles[outputs ? kSlots : 1];
    const Place place(scan);
    Tile<tile>&u = u_tiles[place.slot], &delta = delta_tiles[place.slot];
    MixingTile<tile, states>&B = B_tiles[place.slot], &C = C_tiles[outputs ? place.slot : 0];

    float h[states], rate[states], own_B[states], own_C[states];
    load_own(scan, place, scan.A, scan.states, 1, static_cast<float>(kLog2E), rate);
    if (scan.B.constant) {
        load_own(scan, place, scan.B.data, scan.B.group, scan.B.state, 1.0f, own_B);
    }
    if (outputs && scan.C.constant) {
        load_own(scan, place, scan.C.data, scan.C.group, scan.C.state, 1.0f, own_C);
    }
    const bool works = place.has_channel && place.has_chunk;
#pragma unroll
    for (int n = 0; n < states; ++n) {
        h[n] = outputs && works && scan.chunks > 1
                   ? scan.states_at[state_place<states>(scan, place, n)]
                   : 0.0f;
    }
    const float bias =
        place.has_channel && scan.delta_bias ? scan.delta_bias[place.channel()] : 0.0f;
    const float skip = place.has_channel && scan.D ? scan.D[place.channel()] : 0.0f;
    const bool gated = outputs && scan.z.data != nullptr && scan.ends;
    float delta_sum = 0.0f;

    for (int offset = 0; offset < kChunk; offset += tile) {
        const int steps = place.steps(scan, offset, tile);
        load_tile<In>(scan.u, place, offset, steps, u);
        load_tile<In>(scan.delta, place, offset, steps, delta);
        load_mixing<In>(scan, scan.B, place, offset, steps, B);
        if (outputs) {
            load_mixing<In>(scan, scan.C, place, offset, steps, C);
        }
        __syncwarp();
        for (int i = 0; i < steps; ++i) {
            float slope;
            const float size = step_size(scan, delta.values[i][place.lane], bias, slope);
            const float u_i = u.values[i][place.lane], delta_u = size * u_i;
            float y = scan.begins ? skip * u_i : 0.0f;
#pragma unroll
            for (int n = 0; n < states; ++n) {
                const float B_n = scan.B.constant ? own_B[n] : B.values[i][n];
                h[n] = advance(h[n], decay(size, rate[n]), delta_u, B_n);
                if (outputs) {
                    y += (scan.C.constant ? own_C[n] : C.values[i][n]) * h[n];
                }
            }
            delta_sum += size;
            if (outputs) {
                u.values[i][place.lane] = y;  // nobody else reads this u
            }
        }
        if (outputs) {
            if (!scan.begins || !scan.ends) {
                float* sum = scan.unfinished +
                             (place.image * scan.channels + place.channel()) * scan.length +
                             place.begin + offset;
                for (int i = 0; place.has_channel && i < steps; ++i) {
                    const float y = u.values[i][place.lane] + (scan.begins ? 0.0f : sum[i]);
                    u.values[i][place.lane] = sum[i] = y;
                }
            }
            __syncwarp();
            if (gated) {
                load_tile<In>(scan.z, place, offset, steps, delta);
                __syncwarp();
                for (int i = 0; i < steps; ++i) {
                    const float z = delta.values[i][place.lane];
                    u.values[i][place.lane] *= silu(z, sigmoid(z));
                }
                __syncwarp();
            }
            if (scan.ends) {
                store_tile<In>(scan.y, place, offset, steps, u);
            }
        }
        __syncwarp();
    }
    if (!works) {
        return;
    }
    if (!outputs) {
        scan.delta_sums[(place.image * scan.channels + place.channel()) * scan.chunks +
                        place.chunk] = delta_sum;
#pragma unroll
        for (int n = 0; n < states; ++n) {
            scan.states_at[state_place<states>(scan, place, n)] = h[n];
        }
    } else if (place.chunk == scan.chunks - 1 && scan.last_state) {
#pragma unroll
        for (int n = 0; n < states; ++n) {
            if (scan.first + n < scan.states) {
                scan.last_state[(place.image * scan.channels + place.channel()) * scan.states +
                                scan.first + n] = h[n];
            }
        }
    }
}

// Phase 2, in place: what each chunk ends with from zero becomes what it starts from. `reverse`
// does the same for adjoints, from the last chunk to the first, beginning with grad_last_state. A
// block has one channel of one image; a thread some consecutive chunks.
template <int states, bool reverse>
C2D_KERNEL void carry(Scan scan) {
    __shared__ float sums[kThreads], values[kThreads];
    const int64_t row = static_cast<int64_t>(blockIdx.y) * scan.channels + blockIdx.x;
    const float* delta_sums = scan.delta_sums + row * scan.chunks;
    const int64_t each = (scan.chunks + kThreads - 1) / kThreads;
    const int64_t begin = threadIdx.x * each;
    const int64_t end = begin + each < scan.chunks ? begin + each : scan.chunks;
    const auto at = [&](int64_t k) { return reverse ? scan.chunks - 1 - k : k; };
    for (int n = 0; n < states && scan.first + n < scan.states; ++n) {
        const float rate = scan.A[static_cast<int64_t>(blockIdx.x) * scan.states + scan.first + n] *
                           static_cast<float>(kLog2E);
        float* data =
            (reverse ? scan.adjoints_at : scan.states_at) + (row * states + n) * scan.chunks;
        const float start =
            reverse ? scan.grad_last_state[row * scan.states + scan.first + n] : 0.0f;
        float sum = 0.0f, value = 0.0f;
        for (int64_t k = begin; k < end; ++k) {
            value = decay(delta_sums[at(k)], rate) * value + data[at(k)];
            sum += delta_sums[at(k)];
        }
        // An inclusive scan over the threads of (sum, value), each time twice as far back.
        for (int back = 1; back < kThreads; back *= 2) {
            sums[threadIdx.x] = sum;
            values[threadIdx.x] = value;
            __syncthreads();
            if (static_cast<int>(threadIdx.x) >= back) {
                value = decay(sum, rate) * values[threadIdx.x - back] + value;
                sum += sums[threadIdx.x - back];
            }
            __syncthreads();
        }
        sums[threadIdx.x] = sum;
        values[threadIdx.x] = value;
        __syncthreads();
        float h = start;
        if (threadIdx.x > 0) {
            h = decay(sums[threadIdx.x - 1], rate) * start + values[threadIdx.x - 1];
        }
        for (int64_t k = begin; k < end; ++k) {
            const float local = data[at(k)];
            data[at(k)] = h;
            h = decay(delta_sums[at(k)], rate) * h + local;
        }
        __syncthreads();
    }
}

inline dim3 sweep_grid(const Scan& scan) {
    return dim3(static_cast<unsigned>(divide_up(scan.chunks, kSlots)),
                static_cast<unsigned>(scan.blocks), static_cast<unsigned>(scan.batch));
}

inline dim3 carry_grid(const Scan& scan) {
    return dim3(static_cast<unsigned>(scan.channels), static_cast<unsigned>(scan.batch));
}

template <class In, int states>
void launch_states_before(const Scan& scan, void* stream) {
    if (scan.chunks > 1) {
        C2D_LAUNCH((sweep<In, states, false>), sweep_grid(scan), dim3(kThreads), stream, scan);
        C2D_LAUNCH((carry<states, false>), carry_grid(scan), dim3(kThreads), stream, scan);
    }
}

// Everything of a forward, planned with kMostForward. Workspace: delta_sums and states_at if there
// is more than one chunk, unfinished if there is more than one launch.
template <class In>
void launch_forward(Scan scan, void* stream) {
    for_states(scan, [&] {
        with_padded<kMostForward>(scan, [&](auto padded) {
            constexpr int states = decltype(padded)::value;
            launch_states_before<In, states>(scan, stream);
            C2D_LAUNCH((sweep<In, states, true>), sweep_grid(scan), dim3(kThreads), stream, scan);
        });
    });
}

#endif

}  // namespace c2d::cuda
