// The coordinate query in training on the CPU, host side: segments of the decoder (backward.h) over
// runs of queries, threads, and sums. The arithmetic and its costs are in backward_kernel.cpp.
//
// A run of queries adds up the weights' gradients for itself; runs are added in their order, in
// double. The neighbours' gradients of a few runs are kept, then added to the LR pixels by channel
// slices, so that no two threads add to one number. Results are the same for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "../common/aligned.h"
#include "segment.h"

namespace c2d {
namespace {

constexpr int64_t kTogetherBytes = int64_t{64} << 20;  // of gradients kept until they are added
constexpr int64_t kSlice = 64;                         // channels that a thread adds
constexpr int64_t kSums = 2048;                        // gradients that a thread adds over runs

// Adds the bilinear sample of `picture`, (batch, height, width, 3), to the RGB of a chunk of
// queries; the first one's number is among those of all images.
template <class T>
void add_picture(const QueryArguments& in, const SegmentChunk<T>& chunk, const T* picture,
                 int64_t image, int64_t first, T* rgb) {
    const int64_t width = in.width();
    const T* base = picture + image * in.height() * width * 3;
    const int64_t* const rows[2] = {in.y_low.const_data_ptr<int64_t>() + first,
                                    in.y_high.const_data_ptr<int64_t>() + first};
    const int64_t* const columns[2] = {in.x_low.const_data_ptr<int64_t>() + first,
                                       in.x_high.const_data_ptr<int64_t>() + first};
    for (int64_t i = 0; i < chunk.count; ++i) {
        for (int64_t c = 0; c < 3; ++c) {
            T bilinear = 0;
            for (int64_t tap = 0; tap < kNeighbours; ++tap) {
                bilinear += chunk.weight[tap][i] *
                            base[(rows[tap / 2][i] * width + columns[tap % 2][i]) * 3 + c];
            }
            rgb[i * 3 + c] += bilinear;
        }
    }
}

// The state at the segment's end and the sums of k^T v, or the last one's RGB with the picture.
template <class T>
void forward(const Segment<T>& segment, const T* picture, T* out, double* moments) {
    const QuerySegment<T>& made = segment.made;
    const int64_t d = made.head_dim(), numbers = made.sums ? made.heads * d * d : 0;
    const int64_t tasks = segment.tasks(), of_query = made.sums ? made.width : 3;
    std::vector<double> parts(tasks * numbers, 0.0);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(segment.kernel.scratch(made));
        for (int64_t task = begin; task < end; ++task) {
            double* const sums = parts.data() + task * numbers;
            segment.each_chunk(task,
                               [&](const SegmentChunk<T>& chunk, int64_t image, int64_t first) {
                                   T* const to = out + first * of_query;
                                   segment.kernel.forward(made, chunk, scratch.data(), to, sums);
                                   if (!made.sums) {
                                       add_picture(segment.in, chunk, picture, image, first, to);
                                   }
                               });
        }
    });
    for (int64_t task = 0; task < tasks; ++task) {
        for (int64_t i = 0; i < numbers; ++i) {
            moments[task / segment.runs() * numbers + i] += parts[task * numbers + i];
        }
    }
}

// Adds the neighbours' gradients of tasks begin..end-1, [query][kNeighbours][C] in `from`, to the
// LR pixels.
template <class T>
void add_to_pixels(const Segment<T>& segment, int64_t begin, int64_t end, const T* from, T* to) {
    const QueryArguments& in = segment.in;
    const int64_t C = in.channels(), slices = (C + kSlice - 1) / kSlice, runs = segment.runs();
    const int64_t first_image = begin / runs, images = (end - 1) / runs + 1 - first_image;
    const int64_t Q = segment.queries(), height = in.height(), width = in.width();
    const auto query_of = [&](int64_t task) {  // among those of all images
        return task / runs * Q + std::min(task % runs * kRun, Q);
    };
    const int64_t base = query_of(begin), limit = query_of(end);
    const int64_t* const rows[2] = {in.y_low.const_data_ptr<int64_t>(),
                                    in.y_high.const_data_ptr<int64_t>()};
    const int64_t* const columns[2] = {in.x_low.const_data_ptr<int64_t>(),
                                       in.x_high.const_data_ptr<int64_t>()};
    torch::stable::parallel_for(0, images * slices, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
            const int64_t image = first_image + part / slices, slice = part % slices * kSlice;
            const int64_t count = std::min(kSlice, C - slice);
            const int64_t stop = std::min((image + 1) * Q, limit);
            T* const pixels = to + image * height * width * C + slice;
            for (int64_t q = std::max(image * Q, base); q < stop; ++q) {
                for (int64_t tap = 0; tap < kNeighbours; ++tap) {
                    T* pixel = pixels + (rows[tap / 2][q] * width + columns[tap % 2][q]) * C;
                    const T* gradient = from + ((q - base) * kNeighbours + tap) * C + slice;
                    for (int64_t c = 0; c < count; ++c) {
                        pixel[c] += gradient[c];
                    }
                }
            }
        }
    });
}

template <class T>
void backward(const Segment<T>& segment, const T* grad, T* out, T* line_grad, T* fold_grad) {
    const QuerySegment<T>& made = segment.made;
    const int64_t C = made.width, given = made.sums ? C : 3, gradients = segment.gradients();
    const int64_t of_task = kRun * kNeighbours * C * static_cast<int64_t>(sizeof(T));
    const int64_t together = std::max<int64_t>(1, kTogetherBytes / of_task);
    const int64_t tasks = segment.tasks(), runs = segment.runs(), Q = segment.queries();
    const int64_t shared = segment.shared(), own = segment.own();
    std::vector<double> totals(shared + segment.in.batch() * own, 0.0);
    const int64_t most = std::min(tasks, together);
    // not cleared: every task writes all of its own
    const std::unique_ptr<T[]> taps(new T[made.first ? most * kRun * kNeighbours * C : 0]);
    const std::unique_ptr<T[]> parts(new T[most * gradients]);
    for (int64_t from = 0; from < tasks; from += together) {
        const int64_t to = std::min(from + together, tasks);
        const int64_t base = from / runs * Q + from % runs * kRun;
        torch::stable::parallel_for(from, to, 1, [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(segment.kernel.scratch(made));
            for (int64_t task = begin; task < end; ++task) {
                const QuerySegment<T> weights = segment.for_image(task / runs);
                T* const sums = parts.get() + (task - from) * gradients;
                std::fill(sums, sums + gradients, T(0));
                segment.each_chunk(task, [&](const SegmentChunk<T>& chunk, int64_t, int64_t first) {
                    T* const to_chunk = made.first ? taps.get() + (first - base) * kNeighbours * C
                                                   : out + first * C;
                    segment.kernel.backward(weights, chunk, scratch.data(), grad + first * given,
                                            to_chunk, sums);
                });
            }
        });
        torch::stable::parallel_for(0, gradients, kSums, [&](int64_t begin, int64_t end) {
            for (int64_t task = from; task < to; ++task) {
                const T* const sums = parts.get() + (task - from) * gradients;
                double* const of_image = totals.data() + task / runs * own;
                for (int64_t i = begin; i < std::min(end, shared); ++i) {
                    totals[i] += sums[i];
                }
                for (int64_t i = std::max(begin, shared); i < end; ++i) {
                    of_image[i] += sums[i];
                }
            }
        });
        if (made.first) {
            add_to_pixels(segment, from, to, taps.get(), out);
        }
    }
    segment.give(totals, line_grad, fold_grad);
}

QueryArguments checked_segment(QueryArguments in, int64_t segment, const Tensor& state) {
    in = checked(std::move(in));
    STD_TORCH_CHECK(!in.grid(), "segments take free positions, (batch, queries).");
    STD_TORCH_CHECK(segment >= 0 && segment <= in.attentions && in.folds.size(0) >= segment,
                    "segment must be from 0 to attentions, and the attentions before it folded.");
    if (segment > 0) {
        check_floating_cpu(state, "state", 3);
        STD_TORCH_CHECK(state.is_contiguous() && state.scalar_type() == in.features.scalar_type() &&
                            state.size(0) == in.batch() && state.size(1) == in.columns() &&
                            state.size(2) == in.channels(),
                        "state must be dense, (batch, queries, width).");
    }
    return in;
}

// The decoder in segments, cut behind each attention's k^T v, over free positions; `state` is the
// end of the segment before, (B, queries, C), for the first one anything. A segment leaves its own
// end in `out` and returns the sums of k^T v; the last one leaves the RGB, a bilinear sample of the
// image added.
Tensor coordinate_query_segment(const Tensor& features, const Tensor& weights, const Tensor& folds,
                                const Tensor& y_low, const Tensor& y_high, const Tensor& y_t,
                                const Tensor& y_digits, const Tensor& x_low, const Tensor& x_high,
                                const Tensor& x_t, const Tensor& x_digits, const Tensor& rel_cell,
                                int64_t levels, int64_t heads, int64_t attentions, int64_t segment,
                                const Tensor& state, const Tensor& image, Tensor out) {
    const QueryArguments in =
        checked_segment({features, weights, folds, y_low, y_high, y_t, y_digits, x_low, x_high, x_t,
                         x_digits, rel_cell, levels, heads, attentions},
                        segment, state);
    const bool last = segment == attentions;
    const int64_t d = in.channels() / heads;
    check_floating_cpu(image, "image", 4);
    STD_TORCH_CHECK(image.scalar_type() == features.scalar_type() && image.size(3) == 3 &&
                        image.size(0) == in.batch() && image.size(1) == in.height() &&
                        image.size(2) == in.width(),
                    "image must be the RGB of features' pixels.");
    check_floating_cpu(out, "out", 3);
    STD_TORCH_CHECK(out.is_contiguous() && out.scalar_type() == features.scalar_type() &&
                        out.size(0) == in.batch() && out.size(1) == in.columns() &&
                        out.size(2) == (last ? 3 : in.channels()),
                    "out must be dense, (batch, queries, width), the last segment's with RGB.");
    const Tensor picture = torch::stable::contiguous(image);
    const Tensor sums = torch::stable::new_zeros(features, {last ? 0 : in.batch(), heads, d, d},
                                                 ScalarType::Double);
    const auto run = [&]<class T>(T) {
        forward(Segment<T>(in, segment, &state), picture.const_data_ptr<T>(),
                out.mutable_data_ptr<T>(), sums.mutable_data_ptr<double>());
    };
    features.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
    return sums;
}

// From the gradients of these: those of features or the state, of `weights` as far as this segment
// uses them, and of its fold, (B, C^2 + C).
std::tuple<Tensor, Tensor, Tensor> coordinate_query_segment_backward(
    const Tensor& grad, const Tensor& moment_grad, const Tensor& features, const Tensor& weights,
    const Tensor& folds, const Tensor& y_low, const Tensor& y_high, const Tensor& y_t,
    const Tensor& y_digits, const Tensor& x_low, const Tensor& x_high, const Tensor& x_t,
    const Tensor& x_digits, const Tensor& rel_cell, int64_t levels, int64_t heads,
    int64_t attentions, int64_t segment, const Tensor& state) {
    const QueryArguments in =
        checked_segment({features, weights, folds, y_low, y_high, y_t, y_digits, x_low, x_high, x_t,
                         x_digits, rel_cell, levels, heads, attentions},
                        segment, state);
    const int64_t C = in.channels(), d = C / heads, given = segment < attentions ? C : 3;
    check_floating_cpu(grad, "grad", 3);
    STD_TORCH_CHECK(grad.is_contiguous() && grad.scalar_type() == features.scalar_type() &&
                        grad.size(0) == in.batch() && grad.size(1) == in.columns() &&
                        grad.size(2) == given,
                    "grad must be dense, (batch, queries, ", given, ").");
    if (segment < attentions) {
        check_floating_cpu(moment_grad, "moment_grad", 4);
        STD_TORCH_CHECK(moment_grad.is_contiguous() &&
                            moment_grad.scalar_type() == features.scalar_type() &&
                            moment_grad.numel() == in.batch() * heads * d * d,
                        "moment_grad must be dense, (batch, heads, d, d).");
    }
    const Tensor out =
        segment == 0 ? torch::stable::new_zeros(features, {in.batch(), in.height(), in.width(), C})
                     : torch::stable::new_empty(features, {in.batch(), in.columns(), C});
    const Tensor line_grad = torch::stable::new_zeros(in.weights, {in.weights.numel()});
    const Tensor fold_grad =
        torch::stable::new_zeros(in.weights, {segment == 0 ? 0 : in.batch(), C * C + C});
    const auto run = [&]<class T>(T) {
        Segment<T> made(in, segment, &state);
        if (segment < attentions) {
            made.take_moment_grad(moment_grad);
        }
        backward(made, grad.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                 line_grad.mutable_data_ptr<T>(), fold_grad.mutable_data_ptr<T>());
    };
    features.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
    return {out, line_grad, fold_grad};
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "coordinate_query_segment(Tensor features, Tensor weights, Tensor folds, "
        "Tensor y_low, Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, "
        "Tensor x_t, Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions, "
        "int segment, Tensor state, Tensor image, Tensor(a!) out) -> Tensor");
    m.def(
        "coordinate_query_segment_backward(Tensor grad, Tensor moment_grad, "
        "Tensor features, Tensor weights, Tensor folds, "
        "Tensor y_low, Tensor y_high, Tensor y_t, Tensor y_digits, Tensor x_low, Tensor x_high, "
        "Tensor x_t, Tensor x_digits, Tensor rel_cell, int levels, int heads, int attentions, "
        "int segment, Tensor state) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("coordinate_query_segment", TORCH_BOX(&c2d::coordinate_query_segment));
    m.impl("coordinate_query_segment_backward", TORCH_BOX(&c2d::coordinate_query_segment_backward));
}
