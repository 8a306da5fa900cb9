// The coordinate query in training on the CPU, one instruction set at a time (HIIF, 2412.03748).
//
// Idea. The forward keeps the states at the cuts between segments and nothing else: backwards a
// chunk of 64 queries passes through a segment again, in cache, and at once back. Features lie
// [query][channel], unlike in kernel.cpp: the three products of a Linear, x W^T, dy W and x^T dy,
// then all have one operand whose rows are vectors and take scalars of the other, so that nothing
// is ever transposed. A bias is the weight of one more channel that is always 1, and its gradient
// one more row of x^T dy. LayerNorms' gains and offsets belong to the Linear after them, q and the
// attention to the Linear `fold`: the Python side differentiates that.
//
// Costs per query at width C with one attention and three levels, multiply-adds: 12 C^2 forwards,
// as many again backwards, and 24 C^2 back. Bytes: the state and its gradient, and 4 C numbers for
// the neighbours' gradients, each written and read. The tables of kernel.cpp would save nothing:
// there are seldom more queries than LR pixels.
//
// What was tried, one after the other: HIIF-L, float32, 16 images of 64 x 64, 4096 queries each,
// processor time of forward and backward as a part of the reference's (Intel, AVX-512, one thread):
//                                                                    predicted  measured
//   forward by kernel.cpp, its tables made twice per pass, nothing kept                0.93
//   forward in segments, their states kept, positions in one pass      0.65          0.53
//   LayerNorms: the sums of 16 rows added over the lanes at once       0.49          0.50
//   gradients shared by all images added once, folds taken back once   0.49          0.49
// Tried and left: weights in panels of a tile's columns, predicted to spare a tenth at width 256,
// spared 2 %.
#include "../common/product.h"
#include "../common/vector_math.h"
#include "backward.h"
#include "norms.h"

namespace c2d::C2D_ISA {
namespace {

// GELU in place and, if there is a way back, its slope.
template <class T, int lanes, bool back>
inline void activate(int64_t elements, T* x, T* slope) {
    if constexpr (!back) {
        for (int64_t i = 0; i < elements; i += lanes) {
            store<T, lanes>(x + i, gelu_of(load<T, lanes>(x + i)));
        }
        return;
    }
    for (int64_t i = 0; i < elements; i += lanes) {
        const GeluAndSlope<Vector<T, lanes>> gelu(load<T, lanes>(x + i));
        store<T, lanes>(x + i, gelu.value);
        store<T, lanes>(slope + i, gelu.slope);
    }
}

// Rows of [query][channel], filled up to whole vectors.
template <class T>
struct Rows {
    T* data;
    int64_t stride;

    T* operator[](int64_t row) const { return data + row * stride; }
};

// out = x W^T + bias, x with a 1 behind each row; added to `start`, of out's stride, unless null.
template <class T, int lanes>
inline void linear(const TwoWays<T>& layer, int64_t count, Rows<T> x, const T* start, Rows<T> out) {
    const int64_t outputs = rounded_up(layer.outputs, lanes);
    product<T, lanes>({layer.inputs + 1, x.data, x.stride, 1, layer.forward, outputs, start,
                       out.data, out.stride},
                      count, outputs);
}

// The gradient of x from that of the result, added to `start` unless null.
template <class T, int lanes>
inline void linear_back(const TwoWays<T>& layer, int64_t count, Rows<T> grad, const T* start,
                        Rows<T> out) {
    const int64_t inputs = rounded_up(layer.inputs, lanes);
    product<T, lanes>(
        {layer.outputs, grad.data, grad.stride, 1, layer.back, inputs, start, out.data, out.stride},
        count, inputs);
}

// Adds the gradient of the weights.
template <class T, int lanes>
inline void linear_weights(const TwoWays<T>& layer, int64_t count, Rows<T> x, Rows<T> grad,
                           T* gradients) {
    const int64_t outputs = rounded_up(layer.outputs, lanes);
    T* const sum = gradients + layer.at;
    product<T, lanes>({count, x.data, 1, x.stride, grad.data, grad.stride, sum, sum, outputs},
                      layer.inputs + 1, outputs);
}

template <class T>
inline void ones(int64_t count, int64_t channel, Rows<T> x) {
    for (int64_t q = 0; q < count; ++q) {
        x[q][channel] = T(1);
    }
}

// Scratch memory of a chunk, cut up. `normed`, `scale`, `hidden` and `slope` of each level are what
// its MLP's backward needs.
template <class T, int lanes>
struct Scratch {
    int64_t elements;
    Rows<T> normed[kMostLevels], hidden[kMostLevels], slope[kMostLevels];
    T* scale[kMostLevels];
    Rows<T> state, mixed, mixed_slope;    // before the attention, and its hidden channels
    Rows<T> end, keys, plain, grad_keys;  // after the last level; k and v, before their affine part
    T *key_scale, *moment;
    Rows<T> grad, next, inner;

    Scratch(const QuerySegment<T>& segment, T* memory) {
        const int64_t C = segment.width;
        Cut<T> cut(memory);
        const auto rows = [&](int64_t channels) {
            Rows<T> rows = {nullptr, rounded_up(channels, lanes)};
            cut(rows.data, kSegmentChunk * rows.stride);
            return rows;
        };
        for (int64_t l = 0; l < segment.levels; ++l) {
            normed[l] = rows(segment.fc1[l].inputs + 1);
            hidden[l] = rows(C + 1);
            slope[l] = rows(C + 1);
            cut(scale[l], kSegmentChunk);
        }
        if (!segment.first) {
            state = rows(C + 1);
            mixed = rows(C + 1);
            mixed_slope = rows(C + 1);
        }
        end = rows(C + 1);
        if (segment.sums) {
            // A head's last vector may reach over the next one, the last head's over the end.
            keys = rows(2 * C + lanes);
            plain = rows(2 * C + lanes);
            grad_keys = rows(2 * C + lanes);
            cut(key_scale, kSegmentChunk * 2 * segment.heads);
            const int64_t d = segment.head_dim();
            cut(moment, d * rounded_up(d, lanes));
        }
        grad = rows(segment.fc1[0].inputs);
        next = rows(segment.fc1[0].inputs);
        inner = rows(C);
        elements = cut.elements();
    }
};

// The input of the segment's first MLP.
template <class T, int lanes, bool back>
void begin(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk,
           const Scratch<T, lanes>& s) {
    const int64_t C = segment.width;
    const Rows<T> x = s.normed[0];
    if (segment.first) {
        for (int64_t q = 0; q < chunk.count; ++q) {
            for (int64_t tap = 0; tap < kNeighbours; ++tap) {
                const T *const from = chunk.features[tap][q], weight = chunk.weight[tap][q];
                for (int64_t c = 0; c < C; ++c) {
                    x[q][tap * C + c] = weight * from[c];
                }
            }
            x[q][kNeighbours * C] = chunk.rel_cell[0];
            x[q][kNeighbours * C + 1] = chunk.rel_cell[1];
        }
    } else {
        for (int64_t q = 0; q < chunk.count; ++q) {
            __builtin_memcpy(s.state[q], chunk.state + q * C, C * sizeof(T));
            s.state[q][C] = T(1);
            __builtin_memcpy(x[q], s.state[q], C * sizeof(T));
        }
        linear<T, lanes>(chunk.fold, chunk.count, s.state, nullptr, s.mixed);
        activate<T, lanes, back>(chunk.count * s.mixed.stride, s.mixed.data, s.mixed_slope.data);
        ones(chunk.count, C, s.mixed);
        linear<T, lanes>(segment.proj2, chunk.count, s.mixed, x.data, x);
    }
}

// All MLPs of the segment: the last one's result is in s.end.
template <class T, int lanes, bool back>
void mlps(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk,
          const Scratch<T, lanes>& s) {
    for (int64_t l = 0; l < segment.levels; ++l) {
        const int64_t inputs = segment.fc1[l].inputs;
        const Rows<T> x = s.normed[l], out = l + 1 < segment.levels ? s.normed[l + 1] : s.end;
        for (int64_t q = 0; q < chunk.count; ++q) {
            x[q][inputs - 2] = chunk.digits[2 * l][q];
            x[q][inputs - 1] = chunk.digits[2 * l + 1][q];
        }
        normalise<T, lanes>(chunk.count, inputs, x.data, x.stride, s.scale[l]);
        ones(chunk.count, inputs, x);
        linear<T, lanes>(segment.fc1[l], chunk.count, x, nullptr, s.hidden[l]);
        activate<T, lanes, back>(chunk.count * s.hidden[l].stride, s.hidden[l].data,
                                 s.slope[l].data);
        ones(chunk.count, segment.width, s.hidden[l]);
        linear<T, lanes>(segment.fc2[l], chunk.count, s.hidden[l], nullptr, out);
    }
    ones(chunk.count, segment.fc2[segment.levels - 1].outputs, s.end);
}

// k and v of the state in s.end, after their LayerNorms.
template <class T, int lanes>
void keys_and_values(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk,
                     const Scratch<T, lanes>& s) {
    const int64_t d = segment.head_dim();
    linear<T, lanes>(segment.key_value, chunk.count, s.end, nullptr, s.plain);
    for (int64_t part = 0; part < 2 * segment.heads; ++part) {
        T *const x = s.plain.data + part * d, *const y = s.keys.data + part * d;
        const T* const norm = segment.norms + (part < segment.heads ? 0 : 2 * d);
        normalise<T, lanes>(chunk.count, d, x, s.plain.stride, s.key_scale + part * kSegmentChunk);
        for (int64_t c = 0; c < d; c += lanes) {
            // what a vector writes behind the part, the next part writes over
            const Vector<T, lanes> gain = Lanes<T, lanes>::some(norm + c, d - c);
            const Vector<T, lanes> bias = Lanes<T, lanes>::some(norm + d + c, d - c);
            for (int64_t q = 0; q < chunk.count; ++q) {
                store<T, lanes>(y + q * s.keys.stride + c,
                                load<T, lanes>(x + q * s.plain.stride + c) * gain + bias);
            }
        }
    }
}

template <class T, int lanes>
void forward(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk, T* scratch, T* out,
             double* moments) {
    const Scratch<T, lanes> s(segment, scratch);
    const int64_t d = segment.head_dim(), row = rounded_up(d, lanes);
    const int64_t of_query = segment.sums ? segment.width : 3;
    begin<T, lanes, false>(segment, chunk, s);
    mlps<T, lanes, false>(segment, chunk, s);
    for (int64_t q = 0; q < chunk.count; ++q) {
        __builtin_memcpy(out + q * of_query, s.end[q], of_query * sizeof(T));
    }
    if (!segment.sums) {
        return;
    }
    keys_and_values(segment, chunk, s);
    for (int64_t head = 0; head < segment.heads; ++head) {
        const T *const k = s.keys.data + head * d, *const v = k + segment.width;
        product<T, lanes>(
            {chunk.count, k, 1, s.keys.stride, v, s.keys.stride, nullptr, s.moment, row}, d, row);
        for (int64_t i = 0; i < d; ++i) {
            for (int64_t j = 0; j < d; ++j) {
                moments[(head * d + i) * d + j] += s.moment[i * row + j];
            }
        }
    }
}

// Adds to s.grad, the gradient of the state in s.end, what comes through k^T v.
template <class T, int lanes>
void keys_back(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk,
               const Scratch<T, lanes>& s, T* gradients) {
    const int64_t C = segment.width, d = segment.head_dim(), row = rounded_up(d, lanes);
    const int64_t stride = s.keys.stride;
    keys_and_values(segment, chunk, s);
    for (int64_t part = 0; part < 2 * segment.heads; ++part) {
        // dk = v dM^T and dv = k dM; in this order each overwrites what the one before left behind
        const int64_t head = part % segment.heads, other = part < segment.heads ? C : 0;
        const T* const grad =
            (part < segment.heads ? segment.moment_grad_transposed : segment.moment_grad) +
            head * d * row;
        product<T, lanes>({d, s.keys.data + other + head * d, stride, 1, grad, row, nullptr,
                           s.grad_keys.data + part * d, stride},
                          chunk.count, row);
    }
    for (int64_t part = 0; part < 2 * segment.heads; ++part) {
        const T* const x = s.plain.data + part * d;
        T* const dx = s.grad_keys.data + part * d;
        const int64_t norm = part < segment.heads ? 0 : 2 * d;
        T* const to = gradients + segment.norms_at + norm;
        each_vector<T, lanes>(d, [&](int64_t c, auto mask) {
            const Vector<T, lanes> gain = Lanes<T, lanes>::some(segment.norms + norm + c, d - c);
            Vector<T, lanes> dgain{}, dbias{};
            for (int64_t q = 0; q < chunk.count; ++q) {
                T* const at = dx + q * stride + c;
                const Vector<T, lanes> dy = load<T, lanes>(at);
                dgain += dy * load<T, lanes>(x + q * s.plain.stride + c);
                dbias += dy;
                store<T, lanes>(at, mask ? dy * gain : dy);
            }
            for (int64_t i = 0; i < lanes && c + i < d; ++i) {
                to[c + i] += dgain[i];
                to[d + c + i] += dbias[i];
            }
        });
        normalise_back<T, lanes>(chunk.count, d, x, s.plain.stride,
                                 s.key_scale + part * kSegmentChunk, dx, stride);
    }
    linear_weights<T, lanes>(segment.key_value, chunk.count, s.end, s.grad_keys, gradients);
    linear_back<T, lanes>(segment.key_value, chunk.count, s.grad_keys, s.grad.data, s.grad);
}

// The gradient of hidden channels before their GELU, from that of the Linear's result behind them.
template <class T, int lanes>
inline void hidden_back(const TwoWays<T>& layer, int64_t count, Rows<T> hidden, Rows<T> slope,
                        Rows<T> grad, Rows<T> inner, T* gradients) {
    linear_weights<T, lanes>(layer, count, hidden, grad, gradients);
    linear_back<T, lanes>(layer, count, grad, nullptr, inner);
    for (int64_t q = 0; q < count; ++q) {
        for (int64_t c = 0; c < inner.stride; c += lanes) {
            store<T, lanes>(inner[q] + c,
                            load<T, lanes>(inner[q] + c) * load<T, lanes>(slope[q] + c));
        }
    }
}

template <class T, int lanes>
void backward(const QuerySegment<T>& segment, const SegmentChunk<T>& chunk, T* scratch,
              const T* grad, T* out, T* gradients) {
    Scratch<T, lanes> s(segment, scratch);
    const int64_t C = segment.width, given = segment.sums ? C : 3;
    begin<T, lanes, true>(segment, chunk, s);
    mlps<T, lanes, true>(segment, chunk, s);
    for (int64_t q = 0; q < chunk.count; ++q) {
        for (int64_t c = 0; c < rounded_up(given, lanes); ++c) {
            s.grad[q][c] = c < given ? grad[q * given + c] : T(0);
        }
    }
    if (segment.sums) {
        keys_back(segment, chunk, s, gradients);
    }
    for (int64_t l = segment.levels; l-- > 0;) {
        hidden_back<T, lanes>(segment.fc2[l], chunk.count, s.hidden[l], s.slope[l], s.grad, s.inner,
                              gradients);
        linear_weights<T, lanes>(segment.fc1[l], chunk.count, s.normed[l], s.inner, gradients);
        linear_back<T, lanes>(segment.fc1[l], chunk.count, s.inner, nullptr, s.grad);
        normalise_back<T, lanes>(chunk.count, segment.fc1[l].inputs, s.normed[l].data,
                                 s.normed[l].stride, s.scale[l], s.grad.data, s.grad.stride);
    }
    if (segment.first) {
        for (int64_t q = 0; q < chunk.count; ++q) {
            for (int64_t tap = 0; tap < kNeighbours; ++tap) {
                const T weight = chunk.weight[tap][q];
                for (int64_t c = tap * C; c < (tap + 1) * C; ++c) {
                    out[q * kNeighbours * C + c] = weight * s.grad[q][c];
                }
            }
        }
        return;
    }
    hidden_back<T, lanes>(segment.proj2, chunk.count, s.mixed, s.mixed_slope, s.grad, s.inner,
                          gradients);
    linear_weights<T, lanes>(chunk.fold, chunk.count, s.state, s.inner, gradients);
    linear_back<T, lanes>(chunk.fold, chunk.count, s.inner, s.grad.data, s.grad);
    for (int64_t q = 0; q < chunk.count; ++q) {
        __builtin_memcpy(out + q * C, s.grad[q], C * sizeof(T));
    }
}

template <class T, int lanes>
int64_t scratch(const QuerySegment<T>& segment) {
    return Scratch<T, lanes>(segment, nullptr).elements;
}

template <class T, int lanes>
constexpr SegmentKernels<T> kKernels = {lanes, scratch<T, lanes>, forward<T, lanes>,
                                        backward<T, lanes>};

}  // namespace

extern const SegmentKernels<float> segment_float32 = kKernels<float, kVectorBytes / sizeof(float)>;
extern const SegmentKernels<double> segment_float64 =
    kKernels<double, kVectorBytes / sizeof(double)>;

}  // namespace c2d::C2D_ISA
