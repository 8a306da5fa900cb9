// The selective scan's gradients on a GPU. The equations are in scan.h, the mapping in cuda_scan.h.
//
// Idea. The states before each chunk are found as in the forward. The adjoint goes the same way
// backwards: each chunk's from zero, the scan over the chunks, then every gradient. Within a chunk
// nothing but the states before every 4th step is kept; four steps at a time are then swept
// forwards into registers and backwards. dB and dC are sums over the sixteen channels of a half
// warp, made for sixteen numbers at once by fifteen shuffles, and over blocks of channels by
// another kernel; dA, dD and d(delta_bias) are a chunk's sums, then a sum over chunks. No atomics:
// two runs agree bitwise.
//
// Bytes per step at D = 48, N = 8, float32: the forward's first phase 448, the adjoints' 416, the
// last one u, delta, dy, B, C in, du and ddelta out (u, delta, B twice): 1440; the parts of dB and
// dC 3 x 64 out and in, 64 out: 2752 in all, of which 1728 are needed. Exponentials a state and
// step: five.
//
// ptxas (cuda_resources.json): gradients at 8 states takes 236 registers on sm_90, 232 on sm_80, no
// spills; its states before each tile are indexed, so they lie in local memory by intent (512 B per
// thread). 16 states at once spilled 320 B: more than 8 take more launches. Predicted, not
// measured: (B, D, N, L) = (32, 48, 8, 4096) on an H200, 131,072 steps, 2752 bytes at 4.8 TB/s are
// 75 us; two blocks of 128 threads per multiprocessor will not hide all latency: 150 us.
#pragma once

#include "cuda_forward.cuh"

namespace c2d::cuda {

#if defined(__CUDACC__) || defined(C2D_CUDA_ON_CPU)

// dy becomes dy silu(z), where there is a gate.
template <class In, int tile>
C2D_SCAN_FUNCTION void gate_dy(const Scan& scan, const Place& place, int offset, int steps,
                               Tile<tile>& dy, Tile<tile>& z) {
    if (scan.z.data == nullptr) {
        return;
    }
    load_tile<In>(scan.z, place, offset, steps, z);
    __syncwarp();
    for (int i = 0; i < steps; ++i) {
        const float gate = z.values[i][place.lane];
        dy.values[i][place.lane] *= silu(gate, sigmoid(gate));
    }
}

// What the loss gains by the state before each chunk through that chunk alone.
template <class In, int states>
C2D_KERNEL void adjoints(Scan scan) {
    constexpr int tile = kForwardTile;
    __shared__ Tile<tile> delta_tiles[kSlots], dy_tiles[kSlots], z_tiles[kSlots];
    __shared__ MixingTile<tile, states> C_tiles[kSlots];
    const Place place(scan);
    Tile<tile>&delta = delta_tiles[place.slot], &dy = dy_tiles[place.slot];
    MixingTile<tile, states>& C = C_tiles[place.slot];
    float g[states], rate[states], own_C[states];
    load_own(scan, place, scan.A, scan.states, 1, static_cast<float>(kLog2E), rate);
    if (scan.C.constant) {
        load_own(scan, place, scan.C.data, scan.C.group, scan.C.state, 1.0f, own_C);
    }
#pragma unroll
    for (int n = 0; n < states; ++n) {
        g[n] = 0.0f;
    }
    const float bias =
        place.has_channel && scan.delta_bias ? scan.delta_bias[place.channel()] : 0.0f;
    for (int offset = kChunk - tile; offset >= 0; offset -= tile) {
        const int steps = place.steps(scan, offset, tile);
        load_tile<In>(scan.delta, place, offset, steps, delta);
        load_tile<In>(scan.dy, place, offset, steps, dy);
        load_mixing<In>(scan, scan.C, place, offset, steps, C);
        __syncwarp();
        gate_dy<In>(scan, place, offset, steps, dy, z_tiles[place.slot]);
        for (int i = steps - 1; i >= 0; --i) {
            float slope;
            const float size = step_size(scan, delta.values[i][place.lane], bias, slope);
#pragma unroll
            for (int n = 0; n < states; ++n) {
                g[n] = retreat_carry(g[n], decay(size, rate[n]), dy.values[i][place.lane],
                                     scan.C.constant ? own_C[n] : C.values[i][n]);
            }
        }
        __syncwarp();
    }
    if (place.has_channel && place.has_chunk) {
#pragma unroll
        for (int n = 0; n < states; ++n) {
            scan.adjoints_at[state_place<states>(scan, place, n)] = g[n];
        }
    }
}

// Sums of sixteen numbers over a half warp: the lane l gets that of values[l].
C2D_SCAN_FUNCTION float sum_over_channels(float (&values)[kLanes], int lane) {
#pragma unroll
    for (int width = kLanes / 2; width > 0; width /= 2) {
        const bool upper = (lane & width) != 0;
#pragma unroll
        for (int i = 0; i < width; ++i) {
            const float kept = upper ? values[i + width] : values[i];
            const float given = upper ? values[i] : values[i + width];
            values[i] = kept + __shfl_xor_sync(kWholeWarp, given, width);
        }
    }
    return values[0];
}

template <int states>
constexpr int kSumNumbers = sum_numbers(states);

// Every gradient of a chunk, from the state before it and the adjoint after it.
template <class In, int states>
C2D_KERNEL void gradients(Scan scan) {
    constexpr int tile = kBackwardTile, tiles = kChunk / kBackwardTile;
    __shared__ Tile<tile> u_tiles[kSlots], delta_tiles[kSlots], dy_tiles[kSlots], z_tiles[kSlots];
    __shared__ MixingTile<tile, states> B_tiles[kSlots], C_tiles[kSlots];
    const Place place(scan);
    const int lane = place.lane;
    Tile<tile>&u = u_tiles[place.slot], &delta = delta_tiles[place.slot];
    Tile<tile>&dy = dy_tiles[place.slot], &z = z_tiles[place.slot];
    MixingTile<tile, states>&B = B_tiles[place.slot], &C = C_tiles[place.slot];
    const bool works = place.has_channel && place.has_chunk;

    float rate[states], own_B[states], own_C[states];
    load_own(scan, place, scan.A, scan.states, 1, static_cast<float>(kLog2E), rate);
    if (scan.B.constant) {
        load_own(scan, place, scan.B.data, scan.B.group, scan.B.state, 1.0f, own_B);
    }
    if (scan.C.constant) {
        load_own(scan, place, scan.C.data, scan.C.group, scan.C.state, 1.0f, own_C);
    }
    const float bias =
        place.has_channel && scan.delta_bias ? scan.delta_bias[place.channel()] : 0.0f;
    const float skip = place.has_channel && scan.D ? scan.D[place.channel()] : 0.0f;
    const int64_t row = place.image * scan.channels + place.channel();

    // Forwards once: the states before each tile.
    float starts[tiles][states];
    {
        float h[states];
#pragma unroll
        for (int n = 0; n < states; ++n) {
            h[n] = works && scan.chunks > 1 ? scan.states_at[state_place<states>(scan, place, n)]
                                            : 0.0f;
        }
        for (int part = 0; part < tiles; ++part) {
            const int steps = place.steps(scan, part * tile, tile);
#pragma unroll
            for (int n = 0; n < states; ++n) {
                starts[part][n] = h[n];
            }
            load_tile<In>(scan.u, place, part * tile, steps, u);
            load_tile<In>(scan.delta, place, part * tile, steps, delta);
            load_mixing<In>(scan, scan.B, place, part * tile, steps, B);
            __syncwarp();
            for (int i = 0; i < steps; ++i) {
                float slope;
                const float size = step_size(scan, delta.values[i][lane], bias, slope);
                const float delta_u = size * u.values[i][lane];
#pragma unroll
                for (int n = 0; n < states; ++n) {
                    h[n] = advance(h[n], decay(size, rate[n]), delta_u,
                                   scan.B.constant ? own_B[n] : B.values[i][n]);
                }
            }
            __syncwarp();
        }
    }

    float g[states], dA[states], dB_sum[states], dC_sum[states];
#pragma unroll
    for (int n = 0; n < states; ++n) {
        const bool given = works && scan.first + n < scan.states;
        g[n] = !given            ? 0.0f
               : scan.chunks > 1 ? scan.adjoints_at[state_place<states>(scan, place, n)]
                                 : scan.grad_last_state[row * scan.states + scan.first + n];
        dA[n] = dB_sum[n] = dC_sum[n] = 0.0f;
    }
    float dD = 0.0f, ddelta_bias = 0.0f;
    for (int part = tiles - 1; part >= 0; --part) {
        const int offset = part * tile, steps = place.steps(scan, offset, tile);
        const int64_t first_step = place.begin + offset;
        load_tile<In>(scan.u, place, offset, steps, u);
        load_tile<In>(scan.delta, place, offset, steps, delta);
        load_tile<In>(scan.dy, place, offset, steps, dy);
        if (scan.z.data != nullptr) {
            load_tile<In>(scan.z, place, offset, steps, z);
        }
        load_mixing<In>(scan, scan.B, place, offset, steps, B);
        load_mixing<In>(scan, scan.C, place, offset, steps, C);
        __syncwarp();

        // The states before each step of the tile, and after the last.
        float h[tile + 1][states];
#pragma unroll
        for (int n = 0; n < states; ++n) {
            h[0][n] = starts[part][n];
        }
        float y[tile];
#pragma unroll
        for (int i = 0; i < tile; ++i) {
            float slope;
            const bool there = i < steps;
            const float size = step_size(scan, delta.values[i][lane], bias, slope);
            const float delta_u = size * u.values[i][lane];
            y[i] = scan.begins ? skip * u.values[i][lane] : 0.0f;
#pragma unroll
            for (int n = 0; n < states; ++n) {
                const float next = advance(h[i][n], decay(size, rate[n]), delta_u,
                                           scan.B.constant ? own_B[n] : B.values[i][n]);
                h[i + 1][n] = there ? next : h[i][n];
                y[i] += (scan.C.constant ? own_C[n] : C.values[i][n]) * h[i + 1][n];
            }
        }
#pragma unroll
        for (int i = tile - 1; i >= 0; --i) {
            // All lanes walk all steps: the shuffles need them. What is not there is zero.
            const bool there = i < steps;
            float slope;
            const float size = step_size(scan, delta.values[i][lane], bias, slope);
            const float u_i = u.values[i][lane], delta_u = size * u_i;
            const float dy_out = dy.values[i][lane];
            float dy_i = dy_out, gate_slope = 0.0f;
            if (scan.z.data != nullptr) {
                const float gate = z.values[i][lane], s = sigmoid(gate);
                dy_i = dy_out * silu(gate, s);
                gate_slope = silu_slope(gate, s);
            }
            float through_B = 0.0f, through_decay = 0.0f;
            float dB[states], dC[states];
#pragma unroll
            for (int n = 0; n < states; ++n) {
                float carried = g[n], dA_n = dA[n];
                retreat(carried, decay(size, rate[n]), h[i][n], h[i + 1][n], dy_i, size, delta_u,
                        rate[n], scan.B.constant ? own_B[n] : B.values[i][n],
                        scan.C.constant ? own_C[n] : C.values[i][n], through_B, through_decay, dA_n,
                        dB[n], dC[n]);
                g[n] = there ? carried : g[n];
                dA[n] = there ? dA_n : dA[n];
                dB[n] = there ? dB[n] : 0.0f;
                dC[n] = there ? dC[n] : 0.0f;
                dB_sum[n] += dB[n];
                dC_sum[n] += dC[n];
            }
            if (!scan.B.constant || !scan.C.constant) {
#pragma unroll
                for (int first = 0; first < 2 * states; first += kLanes) {
                    float values[kLanes];
#pragma unroll
                    for (int j = 0; j < kLanes; ++j) {
                        const int column = first + j;
                        values[j] =
                            column < states ? dB[column < states ? column : 0]
                            : column < 2 * states
                                ? dC[column < 2 * states && column >= states ? column - states : 0]
                                : 0.0f;
                    }
                    const float sum = sum_over_channels(values, lane);
                    if (there && first + lane < 2 * states) {
                        scan.parts[((place.image * scan.blocks + place.block) * scan.length +
                                    first_step + i) *
                                       (2 * states) +
                                   first + lane] = sum;
                    }
                }
            }
            if (there && place.has_channel && (!scan.begins || !scan.ends)) {
                const int64_t all = scan.batch * scan.channels * scan.length;
                float* sum = scan.unfinished + row * scan.length + first_step + i;
                through_B += scan.begins ? 0.0f : sum[0];
                through_decay += scan.begins ? 0.0f : sum[all];
                y[i] += scan.begins ? 0.0f : sum[2 * all];
                sum[0] = through_B;
                sum[all] = through_decay;
                sum[2 * all] = y[i];
            }
            if (there) {
                const float gained =
                    (u_i * through_B + through_decay * static_cast<float>(kLn2)) * slope;
                dD += dy_i * u_i;
                ddelta_bias += gained;
                u.values[i][lane] = size * through_B + skip * dy_i;
                delta.values[i][lane] = gained;
                z.values[i][lane] = dy_out * y[i] * gate_slope;
            }
        }
        __syncwarp();
        if (scan.ends) {
            store_tile<In>(scan.du, place, offset, steps, u);
            store_tile<In>(scan.ddelta, place, offset, steps, delta);
            if (scan.z.data != nullptr) {
                store_tile<In>(scan.dz, place, offset, steps, z);
            }
        }
        __syncwarp();
    }
    if (works) {
        float* sums = scan.sums + ((place.image * scan.chunks + place.chunk) * scan.channels +
                                   place.channel()) *
                                      kSumNumbers<states>;
#pragma unroll
        for (int n = 0; n < states; ++n) {
            sums[n] = dA[n];
            sums[states + n] = dB_sum[n];
            sums[2 * states + n] = dC_sum[n];
        }
        sums[3 * states] = dD;
        sums[3 * states + 1] = ddelta_bias;
    }
}

// dB and dC from the parts of the blocks of channels, in their order: a thread a step, all states.
template <int states>
C2D_KERNEL void sum_parts(Scan scan, bool is_B, int64_t width, float* to) {
    const int64_t step = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t groups = scan.channels / width, group = blockIdx.y, image = blockIdx.z;
    if (step >= scan.length) {
        return;
    }
    const int64_t blocks = scan.blocks / groups;
    for (int n = 0; n < states && scan.first + n < scan.states; ++n) {
        float sum = 0.0f;
        for (int64_t b = 0; b < blocks; ++b) {
            sum += scan.parts[((image * scan.blocks + group * blocks + b) * scan.length + step) *
                                  (2 * states) +
                              (is_B ? 0 : states) + n];
        }
        to[((image * groups + group) * scan.states + scan.first + n) * scan.length + step] = sum;
    }
}

// One number of one channel summed over images and chunks: each thread some of them, then a tree.
template <int states>
C2D_KERNEL void sum_chunks(Scan scan) {
    __shared__ float sums[kThreads];
    const int64_t channel = blockIdx.x;
    const int number = static_cast<int>(blockIdx.y);
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < scan.batch * scan.chunks; i += kThreads) {
        sum += scan.sums[(i * scan.channels + channel) * kSumNumbers<states> + number];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x != 0) {
        return;
    }
    const int kind = number / states, n = number % states;
    if (kind < 3) {
        float* matrix = kind == 0 ? scan.dA : kind == 1 ? scan.dB : scan.dC;
        const bool wanted = kind == 0 || (kind == 1 ? scan.B.constant : scan.C.constant);
        if (wanted && scan.first + n < scan.states) {
            matrix[channel * scan.states + scan.first + n] = sums[0];
        }
    } else if (scan.ends) {
        float* vector = n == 0 ? scan.dD : scan.ddelta_bias;
        if (vector) {
            vector[channel] = sums[0];
        }
    }
}

// Everything of a backward, planned with kMostBackward. Workspace: all of it, but delta_sums,
// states_at and adjoints_at only if there is more than one chunk, parts only if B or C varies,
// unfinished only if there is more than one launch.
template <class In>
void launch_backward(Scan scan, void* stream) {
    for_states(scan, [&] {
        with_padded<kMostBackward>(scan, [&](auto padded) {
            constexpr int states = decltype(padded)::value;
            launch_states_before<In, states>(scan, stream);
            if (scan.chunks > 1) {
                C2D_LAUNCH((adjoints<In, states>), sweep_grid(scan), dim3(kThreads), stream, scan);
                C2D_LAUNCH((carry<states, true>), carry_grid(scan), dim3(kThreads), stream, scan);
            }
            C2D_LAUNCH((gradients<In, states>), sweep_grid(scan), dim3(kThreads), stream, scan);
            for (const bool is_B : {true, false}) {
                const Mixing& mixing = is_B ? scan.B : scan.C;
                if (!mixing.constant) {
                    const dim3 grid(static_cast<unsigned>(divide_up(scan.length, kThreads)),
                                    static_cast<unsigned>(scan.channels / mixing.width),
                                    static_cast<unsigned>(scan.batch));
                    C2D_LAUNCH((sum_parts<states>), grid, dim3(kThreads), stream, scan, is_B,
                               mixing.width, is_B ? scan.dB : scan.dC);
                }
            }
            const dim3 grid(static_cast<unsigned>(scan.channels), kSumNumbers<states>);
            C2D_LAUNCH((sum_chunks<states>), grid, dim3(kThreads), stream, scan);
        });
    });
}

#endif

}  // namespace c2d::cuda
