// What the sweeps of the selective scan read and write: tiles of steps, between memory of any
// layout and buffers in cache where a vector holds the block's channels at one step.
#pragma once

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
    return a > b ? a : b;  // b where a is not a number, as softplus has it
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

}  // namespace
}  // namespace c2d::C2D_ISA
