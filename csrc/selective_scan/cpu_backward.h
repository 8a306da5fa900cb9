// The selective scan's sweep back over time on the CPU, with every gradient; see kernel.cpp.
#pragma once

#include "cpu_forward.h"

namespace c2d::C2D_ISA {
namespace {

// What the backward sweep keeps of one group of states over a tile.
template <class T>
struct Kept {
    alignas(64) T decays[kBackwardTile * kGroup * kLanes<T>];
    alignas(
        64) T states[(kBackwardTile + 1) * kGroup * kLanes<T>];  // from before the first step on
};

// What a tile's backward sweep collects over the groups of states, [step][lane].
template <class T>
struct Collected {
    alignas(64) T through_B[kBackwardTile * kLanes<T>];
    alignas(64) T through_decay[kBackwardTile * kLanes<T>];
    alignas(64) T y[kBackwardTile * kLanes<T>];  // before the gate
};

// Decays and states of a group again, from the state before the tile; adds C h to y if there is a
// gate, whose gradient wants it.
template <class T, int count, bool constant_B, bool constant_C, bool gated>
void repeat(const Inputs<T>& in, int64_t steps, const T* rates, View<T> B, View<T> C,
            const T* checkpoint, T* y, Kept<T>& kept) {
    constexpr int lanes = kLanes<T>;
    V<T> h[count], rate[count];
#pragma GCC unroll 8
    for (int s = 0; s < count; ++s) {
        h[s] = load<T, lanes>(checkpoint + s * lanes);
        rate[s] = load<T, lanes>(rates + s * lanes);
        store<T, lanes>(kept.states + s * lanes, h[s]);
    }
    for (int64_t t = 0; t < steps; ++t) {
        const V<T> delta = load<T, lanes>(in.delta + t * lanes);
        const V<T> delta_u = delta * load<T, lanes>(in.u + t * lanes);
        V<T> sum = {};
#pragma GCC unroll 8
        for (int s = 0; s < count; ++s) {
            const V<T> a = decay(delta, rate[s]);
            h[s] = advance(h[s], a, delta_u, at<T, constant_B>(B, s, t));
            store<T, lanes>(kept.decays + (t * count + s) * lanes, a);
            store<T, lanes>(kept.states + ((t + 1) * count + s) * lanes, h[s]);
            if constexpr (gated) {
                sum += at<T, constant_C>(C, s, t) * h[s];
            }
        }
        if constexpr (gated) {
            store<T, lanes>(y + t * lanes, load<T, lanes>(y + t * lanes) + sum);
        }
    }
}

// The sums of dB[0..count), dC[0..count) over their lanes, at `to`.
template <class T, int count>
C2D_SCAN_FUNCTION void write_sums(const V<T> (&parts)[2 * count], bool accumulate, T* to) {
    constexpr int lanes = kLanes<T>;
    if constexpr (2 * count >= lanes) {
#pragma GCC unroll 8
        for (int i = 0; i < 2 * count; i += lanes) {
            V<T> sums = sums_over_lanes<T, lanes, lanes>(parts + i);
            if (accumulate) {
                sums += load<T, lanes>(to + i);
            }
            store<T, lanes>(to + i, sums);
        }
    } else {
        const V<T> sums = sums_over_lanes<T, lanes, 2 * count>(parts);
        for (int i = 0; i < 2 * count; ++i) {
            to[i] = accumulate ? to[i] + sums[i] : sums[i];
        }
    }
}

template <class T>
C2D_SCAN_FUNCTION void add_to(T* to, V<T> vector) {
    constexpr int lanes = kLanes<T>;
    store<T, lanes>(to, load<T, lanes>(to) + vector);
}

// The adjoint of a group over a tile, last step first. The pointers of `sums` are the group's own.
template <class T, int count, bool constant_B, bool constant_C>
void sweep_back(const Inputs<T>& in, int64_t steps, const T* rates, View<T> B, View<T> C,
                const T* dy_tile, const Kept<T>& kept, T* adjoint, Collected<T>& collected,
                const ScanGradients<T>& sums, int64_t mixing_step) {
    constexpr int lanes = kLanes<T>;
    V<T> carry[count], dA[count], sum_B[count], sum_C[count];
#pragma GCC unroll 8
    for (int s = 0; s < count; ++s) {
        carry[s] = load<T, lanes>(adjoint + s * lanes);
        dA[s] = sum_B[s] = sum_C[s] = V<T>{};
    }
    for (int64_t t = steps - 1; t >= 0; --t) {
        const V<T> delta = load<T, lanes>(in.delta + t * lanes);
        const V<T> delta_u = delta * load<T, lanes>(in.u + t * lanes);
        const V<T> dy = load<T, lanes>(dy_tile + t * lanes);
        V<T> through_B = load<T, lanes>(collected.through_B + t * lanes);
        V<T> through_decay = load<T, lanes>(collected.through_decay + t * lanes);
        V<T> parts[2 * count];
#pragma GCC unroll 8
        for (int s = 0; s < count; ++s) {
            retreat(carry[s], load<T, lanes>(kept.decays + (t * count + s) * lanes),
                    load<T, lanes>(kept.states + (t * count + s) * lanes),
                    load<T, lanes>(kept.states + ((t + 1) * count + s) * lanes), dy, delta, delta_u,
                    load<T, lanes>(rates + s * lanes), at<T, constant_B>(B, s, t),
                    at<T, constant_C>(C, s, t), through_B, through_decay, dA[s], parts[s],
                    parts[count + s]);
            if constexpr (constant_B) {
                sum_B[s] += parts[s];
            }
            if constexpr (constant_C) {
                sum_C[s] += parts[count + s];
            }
        }
        store<T, lanes>(collected.through_B + t * lanes, through_B);
        store<T, lanes>(collected.through_decay + t * lanes, through_decay);
        if constexpr (!constant_B || !constant_C) {
            if (sums.mixing != nullptr) {
                write_sums<T, count>(parts, sums.accumulate, sums.mixing + t * mixing_step);
            }
        }
    }
#pragma GCC unroll 8
    for (int s = 0; s < count; ++s) {
        store<T, lanes>(adjoint + s * lanes, carry[s]);
        add_to(sums.dA + s * lanes, dA[s]);
        if constexpr (constant_B) {
            add_to(sums.dB + s * lanes, sum_B[s]);
        }
        if constexpr (constant_C) {
            add_to(sums.dC + s * lanes, sum_C[s]);
        }
    }
}

template <class T>
void back_groups(const ScanBlock<T>& block, const Inputs<T>& in, int64_t begin, int64_t steps,
                 const T* rates, const T* dy, const T* checkpoint, T* adjoint,
                 Collected<T>& collected, const ScanGradients<T>& gradients) {
    constexpr int lanes = kLanes<T>;
    alignas(64) T B_buffer[kMixingBuffer<T>], C_buffer[kMixingBuffer<T>];
    Kept<T> kept;
    for (int64_t n = 0; n < block.states; n += kGroup) {
        const Group group{n, block.states == 1 ? 1 : kGroup, block.states};
        const View<T> B = view_of(block.B, group, block.channels, begin, steps, B_buffer);
        const View<T> C = view_of(block.C, group, block.channels, begin, steps, C_buffer);
        const T* rate = rates + n * lanes;
        ScanGradients<T> sums = gradients;
        sums.dA += n * lanes;
        sums.dB += block.B.constant ? n * lanes : 0;
        sums.dC += block.C.constant ? n * lanes : 0;
        sums.mixing = gradients.mixing ? gradients.mixing + 2 * n : nullptr;
        const int64_t mixing_step = 2 * padded_states(block.states);
        by_form(block.B.constant, block.C.constant, [&]<bool constant_B, bool constant_C>() {
            const auto both = [&]<int count>() {
                const auto again = block.z.data ? repeat<T, count, constant_B, constant_C, true>
                                                : repeat<T, count, constant_B, constant_C, false>;
                again(in, steps, rate, B, C, checkpoint + n * lanes, collected.y, kept);
                sweep_back<T, count, constant_B, constant_C>(in, steps, rate, B, C, dy, kept,
                                                             adjoint + n * lanes, collected, sums,
                                                             mixing_step);
            };
            if (group.count == 1) {
                both.template operator()<1>();
            } else {
                both.template operator()<kGroup>();
            }
        });
    }
}

template <class T>
void backward(const ScanBlock<T>& block, const ScanGradients<T>& gradients, int64_t begin,
              int64_t end, Checkpoints<const T> checkpoints, T* adjoint) {
    constexpr int lanes = kLanes<T>;
    alignas(64) T rates[kMostStates * lanes];
    alignas(64) T dy[kBackwardTile * lanes];
    alignas(64) T z[kBackwardTile * lanes];
    alignas(64) T before[kMostStates * lanes] = {};  // zero where there is no channel or state
    Inputs<T> in(block);
    Collected<T> collected;
    decay_rates(block, rates);
    const V<T> skip = block.D ? gather(block.D, 1, block.channels) : V<T>{};
    const int64_t padded = padded_states(block.states);
    V<T> dD = {}, dbias = {};
    // Sums of this run alone, added to the whole at the end: three levels of sums lose less than
    // one.
    const int64_t state_numbers = padded * lanes;
    alignas(64) T run_sums[3][kMostStates * lanes];
    for (auto& sums : run_sums) {
        __builtin_memset(sums, 0, state_numbers * sizeof(T));
    }
    for (int64_t tile = (end - begin - 1) / kBackwardTile; tile >= 0; --tile) {
        const int64_t t = begin + tile * kBackwardTile;
        const int64_t steps = end - t < kBackwardTile ? end - t : kBackwardTile;
        const int64_t numbers = steps * lanes;
        in.template read<true>(block, t, steps, -kBackwardTile);
        read_tile(gradients.dy, block.channels, t, steps, -kBackwardTile, dy);
        if (block.z.data) {
            read_tile(block.z, block.channels, t, steps, -kBackwardTile, z);
        }
        for (int64_t i = 0; i < numbers; i += lanes) {
            const V<T> u = load<T, lanes>(in.u + i);
            store<T, lanes>(collected.y + i, skip * u);
            store<T, lanes>(collected.through_B + i, V<T>{});
            store<T, lanes>(collected.through_decay + i, V<T>{});
            if (block.z.data) {  // z keeps dy silu'(z) from here on, dy becomes dy silu(z)
                const V<T> gate = load<T, lanes>(z + i), s = sigmoid(gate);
                const V<T> through = load<T, lanes>(dy + i);
                store<T, lanes>(z + i, through * silu_slope(gate, s));
                store<T, lanes>(dy + i, through * silu(gate, s));
            }
        }
        ScanGradients<T> here = gradients;
        here.dA = run_sums[0];
        here.dB = run_sums[1];
        here.dC = run_sums[2];
        V<T> tile_dD = {}, tile_dbias = {};
        here.mixing = gradients.mixing ? gradients.mixing + (t - begin) * 2 * padded : nullptr;
        read_checkpoint(block, checkpoints, tile, before);
        back_groups(block, in, t, steps, rates, dy, before, adjoint, collected, here);
        // The tile's buffers turn into gradients: through_B into du, through_decay into ddelta.
        for (int64_t i = 0; i < numbers; i += lanes) {
            const V<T> u = load<T, lanes>(in.u + i), through = load<T, lanes>(dy + i);
            const V<T> through_B = load<T, lanes>(collected.through_B + i);
            V<T> ddelta = u * through_B + load<T, lanes>(collected.through_decay + i) * T(kLn2);
            if (block.softplus) {
                ddelta *= load<T, lanes>(in.slope + i);
            }
            tile_dbias += ddelta;
            tile_dD += through * u;
            store<T, lanes>(collected.through_decay + i, ddelta);
            store<T, lanes>(collected.through_B + i,
                            load<T, lanes>(in.delta + i) * through_B + skip * through);
            if (block.z.data) {
                store<T, lanes>(z + i, load<T, lanes>(z + i) * load<T, lanes>(collected.y + i));
            }
        }
        dD += tile_dD;
        dbias += tile_dbias;
        if (gradients.du.data) {
            write_tile(gradients.du, block.channels, t, steps, collected.through_B);
        }
        if (gradients.ddelta.data) {
            write_tile(gradients.ddelta, block.channels, t, steps, collected.through_decay);
        }
        if (gradients.dz.data) {
            write_tile(gradients.dz, block.channels, t, steps, z);
        }
    }
    for (int64_t i = 0; i < state_numbers; i += lanes) {
        add_to(gradients.dA + i, load<T, lanes>(run_sums[0] + i));
        if (block.B.constant) {
            add_to(gradients.dB + i, load<T, lanes>(run_sums[1] + i));
        }
        if (block.C.constant) {
            add_to(gradients.dC + i, load<T, lanes>(run_sums[2] + i));
        }
    }
    add_to(gradients.dD, dD);
    add_to(gradients.ddelta_bias, dbias);
}

template <class T>
void adjoint(const ScanBlock<T>& block, Sequence<const T> dy_from, int64_t begin, int64_t end,
             T* adjoint) {
    constexpr int lanes = kLanes<T>;
    alignas(64) T rates[kMostStates * lanes];
    alignas(64) T dy[kForwardTile * lanes];
    alignas(64) T z[kForwardTile * lanes];
    alignas(64) T C_buffer[kMixingBuffer<T>];
    Inputs<T> in(block);
    decay_rates(block, rates);
    for (int64_t tile = (end - begin - 1) / kForwardTile; tile >= 0; --tile) {
        const int64_t t = begin + tile * kForwardTile;
        const int64_t steps = end - t < kForwardTile ? end - t : kForwardTile;
        in.read(block, t, steps, -kForwardTile);
        read_tile(dy_from, block.channels, t, steps, -kForwardTile, dy);
        if (block.z.data) {
            read_tile(block.z, block.channels, t, steps, -kForwardTile, z);
            for (int64_t i = 0; i < steps * lanes; i += lanes) {
                const V<T> gate = load<T, lanes>(z + i);
                store<T, lanes>(dy + i, load<T, lanes>(dy + i) * silu(gate, sigmoid(gate)));
            }
        }
        for (int64_t n = 0; n < block.states; ++n) {
            const Group group{n, 1, block.states};
            const View<T> C = view_of(block.C, group, block.channels, t, steps, C_buffer);
            const V<T> rate = load<T, lanes>(rates + n * lanes);
            V<T> carry = load<T, lanes>(adjoint + n * lanes);
            by_form(block.C.constant, false, [&]<bool constant_C, bool>() {
                for (int64_t i = steps - 1; i >= 0; --i) {
                    const V<T> a = decay(load<T, lanes>(in.delta + i * lanes), rate);
                    carry = retreat_carry(carry, a, load<T, lanes>(dy + i * lanes),
                                          at<T, constant_C>(C, 0, i));
                }
            });
            store<T, lanes>(adjoint + n * lanes, carry);
        }
    }
}

// Where column j of a mixing buffer belongs: a state of dB or of dC, or nowhere (a padded state).
template <class T>
T* mixing_row(int64_t column, int64_t states, T* dB, T* dC, int64_t state_stride) {
    const int64_t count = states == 1 ? 1 : kGroup;
    const int64_t state = column / (2 * count) * count + column % count;
    T* to = column / count % 2 == 0 ? dB : dC;
    return to == nullptr || state >= states ? nullptr : to + state * state_stride;
}

template <class T>
void sum_mixing(const T* const* parts, int64_t count, int64_t states, int64_t steps, T* dB, T* dC,
                int64_t state_stride) {
    constexpr int lanes = kLanes<T>;
    const int64_t columns = 2 * padded_states(states);
    int64_t t = 0;
    for (; columns % lanes == 0 && t + lanes <= steps; t += lanes) {
        for (int64_t column = 0; column < columns; column += lanes) {
            V<T> rows[lanes];
            for (int i = 0; i < lanes; ++i) {
                const int64_t place = (t + i) * columns + column;
                rows[i] = load<T, lanes>(parts[0] + place);
                for (int64_t p = 1; p < count; ++p) {
                    rows[i] += load<T, lanes>(parts[p] + place);
                }
            }
            transpose<T, lanes>(rows);
            for (int i = 0; i < lanes; ++i) {
                T* row = mixing_row(column + i, states, dB, dC, state_stride);
                if (row != nullptr) {
                    store<T, lanes>(row + t, rows[i]);
                }
            }
        }
    }
    for (; t < steps; ++t) {
        for (int64_t column = 0; column < columns; ++column) {
            T* row = mixing_row(column, states, dB, dC, state_stride);
            if (row != nullptr) {
                row[t] = parts[0][t * columns + column];
                for (int64_t p = 1; p < count; ++p) {
                    row[t] += parts[p][t * columns + column];
                }
            }
        }
    }
}

}  // namespace
}  // namespace c2d::C2D_ISA
