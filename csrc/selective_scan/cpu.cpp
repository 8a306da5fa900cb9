// The selective scan on the CPU, one instruction set at a time. The equations are in scan.h.
//
// Idea. A vector holds one state of `lanes` channels, so that the recursion over steps is plain
// vector arithmetic and B and C, which all channels share, are broadcasts from where they lie. The
// states of a group (8 with AVX-512) stay in registers while a tile of steps is swept. Inputs of a
// tile come through a buffer in cache, softplus done, which costs little and makes every layout the
// same: (B, L, D) is copied, (B, D, L) transposed in registers.
//
// Backwards, a tile's states and decays are computed again from the state before it and kept in
// cache while the adjoint is swept the other way; dB and dC, sums over channels, are sums over
// lanes here, made for 2 * group vectors at once.
//
// Costs a step and channel with N states: one exponential a state forwards (16 operations of the 20
// that it takes), two backwards; bytes as in the operator's definition, (3 + 2 N / D) numbers
// forwards without z.
#include "../common/simd.h"
#include "../common/vector_math.h"
#include "selective_scan.h"

#define C2D_SCAN_FUNCTION inline __attribute__((always_inline))
#define C2D_SCAN_NAMESPACE c2d::C2D_ISA

namespace c2d::C2D_ISA {
namespace {

template <class V>
using Scalar = Element<V>;

template <class V>
C2D_SCAN_FUNCTION V broadcast(Scalar<V> value) {
    return filled<V>(value);
}
template <class V>
C2D_SCAN_FUNCTION V maximum(V a, V b) {
    return a > b ? a : b;  // b where a is no number, as softplus has it
}
template <class Condition, class V>
C2D_SCAN_FUNCTION V select(Condition condition, V a, V b) {
    return condition ? a : b;
}

}  // namespace
}  // namespace c2d::C2D_ISA

#include "scan.h"

namespace c2d::C2D_ISA {
namespace {

// States swept together: with the decays' logarithms they fill half the registers.
#if defined(__AVX512F__)
constexpr int kGroup = 8;
#else
constexpr int kGroup = 4;
#endif
constexpr int64_t kMostStates = 256;

template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T>
using V = Vector<T, kLanes<T>>;

int64_t padded_states(int64_t states) {
    return states == 1 ? 1 : (states + kGroup - 1) / kGroup * kGroup;
}

// buffer[step][lane] = the block's channels at steps begin.., zero in lanes without a channel.
// Fetches the lines of the tile `ahead` steps further (or back) on, while this one is worked on.
template <class T>
void read_tile(Sequence<const T> from, int64_t channels, int64_t begin, int64_t steps,
               int64_t ahead, T* buffer) {
    constexpr int lanes = kLanes<T>;
    const T* data = from.data + begin * from.step_stride;
    const int64_t distance = ahead * from.step_stride;
    if (from.channel_stride == 1 && channels == lanes) {
        for (int64_t t = 0; t < steps; ++t) {
            const T* row = data + t * from.step_stride;
            __builtin_prefetch(row + distance);
            __builtin_prefetch(row + distance + lanes - 1);
            store<T, lanes>(buffer + t * lanes, load<T, lanes>(row));
        }
        return;
    }
    int64_t t = 0;
    if (from.step_stride == 1) {
        for (; t + lanes <= steps; t += lanes) {
            V<T> rows[lanes] = {};
            if (channels == lanes) {
#pragma GCC unroll 16
                for (int c = 0; c < lanes; ++c) {
                    const T* row = data + c * from.channel_stride + t;
                    __builtin_prefetch(row + distance);
                    rows[c] = load<T, lanes>(row);
                }
            } else {
                for (int64_t c = 0; c < channels; ++c) {
                    rows[c] = load<T, lanes>(data + c * from.channel_stride + t);
                }
            }
            transpose<T, lanes>(rows);
            for (int c = 0; c < lanes; ++c) {
                store<T, lanes>(buffer + (t + c) * lanes, rows[c]);
            }
        }
    }
    for (; t < steps; ++t) {
        for (int64_t c = 0; c < lanes; ++c) {
            buffer[t * lanes + c] =
                c < channels ? data[c * from.channel_stride + t * from.step_stride] : T(0);
        }
    }
}

template <class T>
void write_tile(Sequence<T> to, int64_t channels, int64_t begin, int64_t steps, const T* buffer) {
    constexpr int lanes = kLanes<T>;
    T* data = to.data + begin * to.step_stride;
    if (to.channel_stride == 1 && channels == lanes) {
        for (int64_t t = 0; t < steps; ++t) {
            store<T, lanes>(data + t * to.step_stride, load<T, lanes>(buffer + t * lanes));
        }
        return;
    }
    int64_t t = 0;
    if (to.step_stride == 1) {
        for (; t + lanes <= steps; t += lanes) {
            V<T> rows[lanes];
            for (int c = 0; c < lanes; ++c) {
                rows[c] = load<T, lanes>(buffer + (t + c) * lanes);
            }
            transpose<T, lanes>(rows);
            for (int64_t c = 0; c < channels; ++c) {
                store<T, lanes>(data + c * to.channel_stride + t, rows[c]);
            }
        }
    }
    for (; t < steps; ++t) {
        for (int64_t c = 0; c < channels; ++c) {
            data[c * to.channel_stride + t * to.step_stride] = buffer[t * lanes + c];
        }
    }
}

// A vector of the block's channels from a dense array with `stride` between channels.
template <class T>
V<T> gather(const T* from, int64_t stride, int64_t channels) {
    V<T> vector = {};
    for (int64_t c = 0; c < channels; ++c) {
        vector[c] = from[c * stride];
    }
    return vector;
}

// B or C as the sweeps read it: state s of a group at step t (counted from the tile's start) is
// data[s * state_stride + t * step_stride], one number for all lanes or, if constant, a vector.
template <class T>
struct View {
    const T* data;
    int64_t state_stride, step_stride;
};

template <class T, bool constant>
C2D_SCAN_FUNCTION V<T> at(const View<T>& view, int state, int64_t step) {
    if constexpr (constant) {
        return load<T, kLanes<T>>(view.data + state * kLanes<T>);
    } else {
        return filled<V<T>>(view.data[state * view.state_stride + step * view.step_stride]);
    }
}

// `count` states from `first` on of one group, out of `states`.
struct Group {
    int64_t first, count, states;

    int64_t present() const { return states - first < count ? states - first : count; }
};

// B or C of a group over a tile. A group that reaches past the last state reads zeros there, from a
// copy in `buffer` (steps x kGroup), as constants do (kGroup x lanes).
template <class T>
View<T> view_of(const Mixing<T>& mixing, const Group& group, int64_t channels, int64_t begin,
                int64_t steps, T* buffer) {
    constexpr int lanes = kLanes<T>;
    const T* data = mixing.data + group.first * mixing.state_stride + begin * mixing.step_stride;
    if (mixing.constant) {
        for (int64_t s = 0; s < group.count; ++s) {
            V<T> vector = {};
            if (s < group.present()) {
                vector = gather(data + s * mixing.state_stride, mixing.channel_stride, channels);
            }
            store<T, lanes>(buffer + s * lanes, vector);
        }
        return {buffer, 0, 0};
    }
    if (group.present() == group.count) {
        return {data, mixing.state_stride, mixing.step_stride};
    }
    for (int64_t t = 0; t < steps; ++t) {
        for (int64_t s = 0; s < group.count; ++s) {
            buffer[t * group.count + s] =
                s < group.present() ? data[s * mixing.state_stride + t * mixing.step_stride] : T(0);
        }
    }
    return {buffer, 1, group.count};
}

template <class T>
constexpr int64_t kMixingBuffer =
    kGroup * (kForwardTile > kLanes<T> ? int64_t(kForwardTile) : int64_t(kLanes<T>));

// A log2 e of the block, [padded_states][lanes].
template <class T>
void decay_rates(const ScanBlock<T>& block, T* rates) {
    constexpr int lanes = kLanes<T>;
    for (int64_t n = 0; n < padded_states(block.states); ++n) {
        V<T> vector = {};
        if (n < block.states) {
            vector = gather(block.A + n, block.states, block.channels) * T(kLog2E);
        }
        store<T, lanes>(rates + n * lanes, vector);
    }
}

// The inputs of a tile, [step][lane]; delta with its bias and through softplus.
template <class T>
struct Inputs {
    alignas(64) T u[kForwardTile * kLanes<T>];
    alignas(64) T delta[kForwardTile * kLanes<T>];
    alignas(64) T slope[kForwardTile * kLanes<T>];  // of softplus, for read with_slope
    V<T> bias;

    explicit Inputs(const ScanBlock<T>& block)
        : bias(block.delta_bias ? gather(block.delta_bias, 1, block.channels) : V<T>{}) {}

    template <bool with_slope = false>
    void read(const ScanBlock<T>& block, int64_t begin, int64_t steps, int64_t ahead) {
        constexpr int lanes = kLanes<T>;
        read_tile(block.u, block.channels, begin, steps, ahead, u);
        read_tile(block.delta, block.channels, begin, steps, ahead, delta);
        if (block.softplus || block.delta_bias) {
            for (int64_t i = 0; i < steps * lanes; i += lanes) {
                const V<T> x = load<T, lanes>(delta + i) + bias;
                V<T> derivative = filled<V<T>>(1);
                store<T, lanes>(delta + i, block.softplus ? softplus(x, derivative) : x);
                if constexpr (with_slope) {
                    store<T, lanes>(slope + i, derivative);
                }
            }
        }
    }
};

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

// Calls function.template operator()<constant_B, constant_C>().
template <class Function>
C2D_SCAN_FUNCTION void by_form(bool constant_B, bool constant_C, const Function& function) {
    if (constant_B) {
        constant_C ? function.template operator()<true, true>()
                   : function.template operator()<true, false>();
    } else {
        constant_C ? function.template operator()<false, true>()
                   : function.template operator()<false, false>();
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
            dbias += ddelta;
            dD += through * u;
            store<T, lanes>(collected.through_decay + i, ddelta);
            store<T, lanes>(collected.through_B + i,
                            load<T, lanes>(in.delta + i) * through_B + skip * through);
            if (block.z.data) {
                store<T, lanes>(z + i, load<T, lanes>(z + i) * load<T, lanes>(collected.y + i));
            }
        }
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

template <class T>
constexpr ScanKernels<T> kKernels = {kLanes<T>,   padded_states, forward<T>,   adjoint<T>,
                                     backward<T>, join<T>,       sum_mixing<T>};

}  // namespace

extern const ScanKernels<float> scan_float32 = kKernels<float>;
extern const ScanKernels<double> scan_float64 = kKernels<double>;

}  // namespace c2d::C2D_ISA
