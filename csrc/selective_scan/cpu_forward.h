// The selective scan's sweep over time on the CPU; see kernel.cpp.
#pragma once

#include "cpu_tiles.h"

namespace c2d::C2D_ISA {
namespace {

// h over a tile for one group of states; adds C h to y unless `states_only`.
template <class T, int count, bool constant_B, bool constant_C, bool states_only>
void sweep(const T* delta_tile, const T* u_tile, int64_t steps, const T* rates, View<T> B,
           View<T> C, T* state, T* y) {
    constexpr int lanes = kLanes<T>;
    V<T> h[count], rate[count];
#pragma GCC unroll 8
    for (int s = 0; s < count; ++s) {
        h[s] = load<T, lanes>(state + s * lanes);
        rate[s] = load<T, lanes>(rates + s * lanes);
    }
    for (int64_t t = 0; t < steps; ++t) {
        const V<T> delta = load<T, lanes>(delta_tile + t * lanes);
        const V<T> delta_u = delta * load<T, lanes>(u_tile + t * lanes);
        V<T> sum = {};
#pragma GCC unroll 8
        for (int s = 0; s < count; ++s) {
            h[s] = advance(h[s], decay(delta, rate[s]), delta_u, at<T, constant_B>(B, s, t));
            if constexpr (!states_only) {
                sum += at<T, constant_C>(C, s, t) * h[s];
            }
        }
        if constexpr (!states_only) {
            store<T, lanes>(y + t * lanes, load<T, lanes>(y + t * lanes) + sum);
        }
    }
#pragma GCC unroll 8
    for (int s = 0; s < count; ++s) {
        store<T, lanes>(state + s * lanes, h[s]);
    }
}

// h over `steps` steps from `begin` on, all groups; `offset` is their place in the tile. y is null
// where only states are wanted.
template <class T, bool states_only>
void sweep_groups(const ScanBlock<T>& block, const Inputs<T>& in, int64_t offset, int64_t begin,
                  int64_t steps, const T* rates, T* state, T* y) {
    constexpr int lanes = kLanes<T>;
    alignas(64) T B_buffer[kMixingBuffer<T>], C_buffer[kMixingBuffer<T>];
    for (int64_t n = 0; n < block.states; n += kGroup) {
        const Group group{n, block.states == 1 ? 1 : kGroup, block.states};
        const View<T> B = view_of(block.B, group, block.channels, begin, steps, B_buffer);
        const View<T> C =
            states_only ? B : view_of(block.C, group, block.channels, begin, steps, C_buffer);
        by_form(block.B.constant, !states_only && block.C.constant,
                [&]<bool constant_B, bool constant_C>() {
                    const auto run = group.count == 1
                                         ? sweep<T, 1, constant_B, constant_C, states_only>
                                         : sweep<T, kGroup, constant_B, constant_C, states_only>;
                    run(in.delta + offset * lanes, in.u + offset * lanes, steps, rates + n * lanes,
                        B, C, state + n * lanes, y + offset * lanes);
                });
    }
}

template <class T>
void write_checkpoint(const ScanBlock<T>& block, const T* state, int64_t tile, Checkpoints<T> to) {
    constexpr int lanes = kLanes<T>;
    for (int64_t n = 0; n < block.states; ++n) {
        T* data = to.data + tile * to.tile_stride + n * to.state_stride;
        if (block.channels == lanes) {
            store<T, lanes>(data, load<T, lanes>(state + n * lanes));
        } else {
            __builtin_memcpy(data, state + n * lanes, block.channels * sizeof(T));
        }
    }
}

// Also fetches the lines of the tile before.
template <class T>
void read_checkpoint(const ScanBlock<T>& block, Checkpoints<const T> from, int64_t tile, T* state) {
    constexpr int lanes = kLanes<T>;
    for (int64_t n = 0; n < block.states; ++n) {
        const T* data = from.data + tile * from.tile_stride + n * from.state_stride;
        __builtin_prefetch(data - from.tile_stride);
        if (block.channels == lanes) {
            store<T, lanes>(state + n * lanes, load<T, lanes>(data));
        } else {
            __builtin_memcpy(state + n * lanes, data, block.channels * sizeof(T));
        }
    }
}

template <class T>
void forward(const ScanBlock<T>& block, int64_t begin, int64_t end, T* state, T* delta_sum,
             Checkpoints<T> checkpoints) {
    constexpr int lanes = kLanes<T>;
    alignas(64) T rates[kMostStates * lanes];
    alignas(64) T y[kForwardTile * lanes];
    alignas(64) T z[kForwardTile * lanes];
    Inputs<T> in(block);
    decay_rates(block, rates);
    const V<T> skip = block.D ? gather(block.D, 1, block.channels) : V<T>{};
    const int64_t sweep_steps = checkpoints.data ? kBackwardTile : kForwardTile;
    for (int64_t t = begin; t < end; t += kForwardTile) {
        const int64_t steps = end - t < kForwardTile ? end - t : kForwardTile;
        const int64_t numbers = steps * lanes;
        in.read(block, t, steps, kForwardTile);
        if (delta_sum != nullptr) {
            V<T> sum = load<T, lanes>(delta_sum);
            for (int64_t i = 0; i < numbers; i += lanes) {
                sum += load<T, lanes>(in.delta + i);
            }
            store<T, lanes>(delta_sum, sum);
        }
        for (int64_t i = 0; block.y.data && i < numbers; i += lanes) {
            store<T, lanes>(y + i, skip * load<T, lanes>(in.u + i));
        }
        for (int64_t i = 0; i < steps; i += sweep_steps) {
            const int64_t count = steps - i < sweep_steps ? steps - i : sweep_steps;
            if (checkpoints.data) {
                write_checkpoint(block, state, (t + i - begin) / kBackwardTile, checkpoints);
            }
            const auto sweep_some = block.y.data ? sweep_groups<T, false> : sweep_groups<T, true>;
            sweep_some(block, in, i, t + i, count, rates, state, y);
        }
        if (block.y.data && block.z.data) {
            read_tile(block.z, block.channels, t, steps, kForwardTile, z);
            for (int64_t i = 0; i < numbers; i += lanes) {
                const V<T> gate = load<T, lanes>(z + i);
                store<T, lanes>(y + i, load<T, lanes>(y + i) * silu(gate, sigmoid(gate)));
            }
        }
        if (block.y.data) {
            write_tile(block.y, block.channels, t, steps, y);
        }
    }
}

template <class T>
void join(const ScanBlock<T>& block, const T* delta_sum, const T* from, const T* local, T* to) {
    constexpr int lanes = kLanes<T>;
    alignas(64) T rates[kMostStates * lanes];
    decay_rates(block, rates);
    const V<T> sum = load<T, lanes>(delta_sum);
    for (int64_t i = 0; i < padded_states(block.states) * lanes; i += lanes) {
        store<T, lanes>(to + i, decay(sum, load<T, lanes>(rates + i)) * load<T, lanes>(from + i) +
                                    load<T, lanes>(local + i));
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
