// The coordinate query's backward on the CPU, host side: segments of the decoder (backward.h) over
// runs of queries, threads, and sums. The arithmetic and its costs are in backward_cpu.cpp.
//
// A run of queries adds up the weights' gradients for itself; runs are added in their order, in
// double. The neighbours' gradients of a few runs are kept, then added to the LR pixels by channel
// slices, so that no two threads add to one number. Results are the same for any number of threads.
#include "backward.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../common/aligned.h"
#include "../common/isa.h"
#include "../kernels.h"
#include "arguments.h"

namespace c2d {
namespace {

constexpr int64_t kRun = 16 * kSegmentChunk;           // queries of a task
constexpr int64_t kTogetherBytes = int64_t{64} << 20;  // of gradients kept until they are added
constexpr int64_t kSlice = 64;                         // channels that a thread adds

template <class T>
const SegmentKernels<T>& kernels() {
    if constexpr (sizeof(T) == sizeof(double)) {
        return C2D_FOR_ISA(segment_float64);
    } else {
        return C2D_FOR_ISA(segment_float32);
    }
}

int64_t filled_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// One segment of a call: its weights both ways round, and what tasks do with it.
template <class T>
class Segment {
  public:
    Segment(const QueryArguments& arguments, int64_t number, const Tensor* state)
        : in(arguments), kernel(kernels<T>()), line(arguments), number_(number) {
        const int64_t C = in.channels();
        const T* weights = in.weights.template const_data_ptr<T>();
        const auto layer = [&](const QueryLine::Linear& at) {
            return two_ways(weights + at.at, weights + at.bias(), at.outputs, at.inputs,
                            places(at.outputs, at.inputs));
        };
        made.width = C;
        made.heads = in.heads;
        made.first = number == 0;
        made.sums = number < in.attentions;
        made.levels = made.sums ? 1 : in.levels - number;
        for (int64_t l = 0; l < made.levels; ++l) {
            made.fc1[l] = number + l > 0 ? layer(line.fc1[number + l]) : first_layer(weights);
            made.fc2[l] = layer(line.fc2[number + l]);
        }
        if (made.sums) {
            const QueryLine::Attention& at = line.attention[number];
            made.key_value = layer(at.key_value);
            made.norms = weights + at.norms;
            made.norms_at = gradients_;
            gradients_ += filled_up(4 * (C / in.heads), kernel.lanes);
        }
        if (!made.first) {
            made.proj2 = layer(line.attention[number - 1].proj2);
            const int64_t at = places(C, C);
            for (int64_t image = 0; image < in.batch(); ++image) {
                const T* fold = in.folds.template const_data_ptr<T>() +
                                ((number - 1) * in.batch() + image) * (C * C + C);
                folds.push_back(two_ways(fold, fold + C * C, C, C, at));
            }
            state_ = state->const_data_ptr<T>();
        }
    }

    int64_t queries() const { return in.columns(); }
    int64_t runs() const { return (queries() + kRun - 1) / kRun; }  // of an image
    int64_t tasks() const { return in.batch() * runs(); }
    int64_t gradients() const { return gradients_; }

    // Calls use(chunk, first query of all images) for every chunk of a task.
    template <class Use>
    void each_chunk(int64_t task, const Use& use) const;

    // The tables of the gradient of k^T v, (batch, heads, d, d), for the kernel.
    void take_moment_grad(const Tensor& grad) {
        const int64_t d = made.head_dim(), row = filled_up(d, kernel.lanes);
        const int64_t heads = in.batch() * in.heads;
        const T* from = grad.const_data_ptr<T>();
        for (int turned = 0; turned < 2; ++turned) {
            std::vector<T>& table = store.emplace_back(heads * d * row);
            for (int64_t place = 0; place < heads * d * d; ++place) {
                const int64_t head = place / (d * d), i = place / d % d, j = place % d;
                table[(head * d + (turned ? j : i)) * row + (turned ? i : j)] = from[place];
            }
            (turned ? made.moment_grad_turned : made.moment_grad) = table.data();
        }
    }

    // The segment with the table of an image.
    QuerySegment<T> of_image(int64_t image) const {
        QuerySegment<T> segment = made;
        if (made.sums && made.moment_grad != nullptr) {
            const int64_t d = made.head_dim();
            const int64_t numbers = in.heads * d * filled_up(d, kernel.lanes);
            segment.moment_grad += image * numbers;
            segment.moment_grad_turned += image * numbers;
        }
        return segment;
    }

    // Puts the sums over tasks, `totals` [images][gradients()], where the weights and folds lie.
    void give(const std::vector<double>& totals, T* line_grad, T* fold_grad) const;

    const QueryArguments& in;
    const SegmentKernels<T>& kernel;
    const QueryLine line;
    QuerySegment<T> made = {};

  private:
    // Where a Linear's gradient lies.
    int64_t places(int64_t outputs, int64_t inputs) {
        const int64_t here = gradients_;
        gradients_ += (inputs + 1) * filled_up(outputs, kernel.lanes);
        return here;
    }

    TwoWays<T> two_ways(const T* matrix, const T* bias, int64_t outputs, int64_t inputs,
                        int64_t at) {
        const int64_t across = filled_up(outputs, kernel.lanes);
        const int64_t along = filled_up(inputs, kernel.lanes);
        T* const forward = store.emplace_back((inputs + 1) * across).data();
        T* const back = store.emplace_back(outputs * along).data();
        for (int64_t j = 0; j < outputs; ++j) {
            for (int64_t k = 0; k < inputs; ++k) {
                forward[k * across + j] = back[j * along + k] = matrix[j * inputs + k];
            }
            forward[inputs * across + j] = bias[j];
        }
        return {forward, back, inputs, outputs, at};
    }

    // The first fc1, whose columns are apart in the line.
    TwoWays<T> first_layer(const T* weights) {
        const int64_t C = in.channels(), inputs = 4 * C + 4;
        std::vector<T> matrix(C * inputs);
        for (int64_t j = 0; j < C; ++j) {
            for (int64_t k = 0; k < inputs; ++k) {
                matrix[j * inputs + k] = weights[first_place(j, k)];
            }
        }
        return two_ways(matrix.data(), weights + line.bias, C, inputs, places(C, inputs));
    }

    int64_t first_place(int64_t output, int64_t input) const {
        const int64_t C = in.channels();
        return input < 4 * C ? line.taps + (input / C * C + output) * C + input % C
                             : line.extras + output * 4 + input - 4 * C;
    }

    std::vector<std::vector<T>> store;
    std::vector<TwoWays<T>> folds;
    const T* state_ = nullptr;
    int64_t number_, gradients_ = 0;
};

template <class T>
template <class Use>
void Segment<T>::each_chunk(int64_t task, const Use& use) const {
    const int64_t C = in.channels(), image = task / runs(), Q = queries();
    const int64_t begin = task % runs() * kRun, end = std::min(begin + kRun, Q);
    const int64_t *y_low = in.y_low.const_data_ptr<int64_t>() + image * Q,
                  *y_high = in.y_high.const_data_ptr<int64_t>() + image * Q,
                  *x_low = in.x_low.const_data_ptr<int64_t>() + image * Q,
                  *x_high = in.x_high.const_data_ptr<int64_t>() + image * Q;
    const T *y_t = in.y_t.const_data_ptr<T>() + image * Q,
            *x_t = in.x_t.const_data_ptr<T>() + image * Q,
            *y_digits = in.y_digits.const_data_ptr<T>() + image * Q,
            *x_digits = in.x_digits.const_data_ptr<T>() + image * Q;
    const T* features = in.features.const_data_ptr<T>() + image * in.features.stride(0);
    const T* rel = in.rel_cell.const_data_ptr<T>() + (in.rel_cell.size(0) > 1 ? 2 * image : 0);
    const auto pixel = [&](int64_t y, int64_t x) {
        return features + y * in.features.stride(1) + x * in.features.stride(2);
    };
    SegmentChunk<T> chunk = {};
    chunk.rel_cell[0] = rel[0];
    chunk.rel_cell[1] = rel[1];
    if (!made.first) {
        chunk.fold = folds[image];
    }
    for (int64_t first = begin; first < end; first += kSegmentChunk) {
        chunk.count = std::min(kSegmentChunk, end - first);
        chunk.state = made.first ? nullptr : state_ + (image * Q + first) * C;
        for (int64_t i = 0; i < chunk.count; ++i) {
            const int64_t q = first + i;
            const T ty = y_t[q], tx = x_t[q];
            const T weights[4] = {(1 - ty) * (1 - tx), (1 - ty) * tx, ty * (1 - tx), ty * tx};
            for (int64_t tap = 0; tap < 4; ++tap) {
                chunk.features[tap][i] =
                    pixel((tap < 2 ? y_low : y_high)[q], (tap % 2 == 0 ? x_low : x_high)[q]);
                chunk.weight[tap][i] = weights[tap];
            }
            for (int64_t l = 0; l < made.levels; ++l) {
                const int64_t level = (number_ + l) * in.batch() * Q;
                chunk.digits[2 * l][i] = y_digits[level + q];
                chunk.digits[2 * l + 1][i] = x_digits[level + q];
            }
        }
        use(chunk, image, image * Q + first);
    }
}

template <class T>
void Segment<T>::give(const std::vector<double>& totals, T* line_grad, T* fold_grad) const {
    const int64_t C = in.channels();
    std::vector<double> total(gradients_);
    for (size_t i = 0; i < totals.size(); ++i) {
        total[i % gradients_] += totals[i];
    }
    const auto layer = [&](const TwoWays<T>& of, const double* from, T* matrix, T* bias) {
        const int64_t across = filled_up(of.outputs, kernel.lanes);
        for (int64_t j = 0; j < of.outputs; ++j) {
            for (int64_t k = 0; k < of.inputs; ++k) {
                matrix[j * of.inputs + k] = static_cast<T>(from[of.at + k * across + j]);
            }
            bias[j] = static_cast<T>(from[of.at + of.inputs * across + j]);
        }
    };
    const auto to_line = [&](const TwoWays<T>& of, const QueryLine::Linear& at) {
        layer(of, total.data(), line_grad + at.at, line_grad + at.bias());
    };
    for (int64_t l = 0; l < made.levels; ++l) {
        to_line(made.fc2[l], line.fc2[number_ + l]);
        if (number_ + l > 0) {
            to_line(made.fc1[l], line.fc1[number_ + l]);
            continue;
        }
        std::vector<T> matrix(C * made.fc1[0].inputs);
        layer(made.fc1[0], total.data(), matrix.data(), line_grad + line.bias);
        for (int64_t i = 0; i < static_cast<int64_t>(matrix.size()); ++i) {
            line_grad[first_place(i / made.fc1[0].inputs, i % made.fc1[0].inputs)] = matrix[i];
        }
    }
    if (made.sums) {
        to_line(made.key_value, line.attention[number_].key_value);
        for (int64_t i = 0; i < 4 * made.head_dim(); ++i) {
            line_grad[line.attention[number_].norms + i] = static_cast<T>(total[made.norms_at + i]);
        }
    }
    if (!made.first) {
        to_line(made.proj2, line.attention[number_ - 1].proj2);
        for (int64_t image = 0; image < in.batch(); ++image) {
            T* fold = fold_grad + image * (C * C + C);
            layer(folds[image], totals.data() + image * gradients_, fold, fold + C * C);
        }
    }
}

template <class T>
void forward(const Segment<T>& segment, T* out, double* moments) {
    const int64_t d = segment.made.head_dim(), numbers = segment.made.heads * d * d;
    const int64_t tasks = segment.tasks();
    std::vector<double> parts(tasks * numbers, 0.0);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(segment.kernel.scratch(segment.made));
        for (int64_t task = begin; task < end; ++task) {
            segment.each_chunk(task, [&](const SegmentChunk<T>& chunk, int64_t, int64_t first) {
                segment.kernel.forward(segment.made, chunk, scratch.data(),
                                       out + first * segment.made.width, &parts[task * numbers]);
            });
        }
    });
    for (int64_t task = 0; task < tasks; ++task) {
        for (int64_t i = 0; i < numbers; ++i) {
            moments[task / segment.runs() * numbers + i] += parts[task * numbers + i];
        }
    }
}

// Adds the neighbours' gradients of tasks begin..end-1, [query][4][C] in `from`, to the LR pixels.
template <class T>
void add_to_pixels(const Segment<T>& segment, int64_t begin, int64_t end, const T* from, T* to) {
    const QueryArguments& in = segment.in;
    const int64_t C = in.channels(), slices = (C + kSlice - 1) / kSlice, runs = segment.runs();
    const int64_t first_image = begin / runs, images = (end - 1) / runs + 1 - first_image;
    const int64_t Q = segment.queries();
    const Tensor* const rows[2] = {&in.y_low, &in.y_high};
    const Tensor* const columns[2] = {&in.x_low, &in.x_high};
    torch::stable::parallel_for(0, images * slices, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
            const int64_t image = first_image + part / slices, slice = part % slices * kSlice;
            const int64_t count = std::min(kSlice, C - slice);
            const auto query_of = [&](int64_t task) {  // among those of all images
                return task / runs * Q + std::min(task % runs * kRun, Q);
            };
            const int64_t stop = std::min((image + 1) * Q, query_of(end));
            for (int64_t q = std::max(image * Q, query_of(begin)); q < stop; ++q) {
                for (int64_t tap = 0; tap < 4; ++tap) {
                    const int64_t y = rows[tap / 2]->const_data_ptr<int64_t>()[q];
                    const int64_t x = columns[tap % 2]->const_data_ptr<int64_t>()[q];
                    T* pixel = to + ((image * in.height() + y) * in.width() + x) * C + slice;
                    const T* gradient = from + ((q - query_of(begin)) * 4 + tap) * C + slice;
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
    const int64_t of_task = kRun * 4 * C * static_cast<int64_t>(sizeof(T));
    const int64_t together = std::max<int64_t>(1, kTogetherBytes / of_task);
    const int64_t tasks = segment.tasks(), runs = segment.runs(), Q = segment.queries();
    std::vector<double> totals(segment.in.batch() * gradients, 0.0);
    const int64_t most = std::min(tasks, together);
    std::vector<T> taps(made.first ? most * kRun * 4 * C : 0);
    std::vector<T> parts(most * gradients);
    for (int64_t from = 0; from < tasks; from += together) {
        const int64_t to = std::min(from + together, tasks);
        const int64_t base = from / runs * Q + from % runs * kRun;
        std::fill(parts.begin(), parts.end(), T(0));
        torch::stable::parallel_for(from, to, 1, [&](int64_t begin, int64_t end) {
            Aligned<T> scratch(segment.kernel.scratch(made));
            for (int64_t task = begin; task < end; ++task) {
                const QuerySegment<T> weights = segment.of_image(task / runs);
                T* const sums = parts.data() + (task - from) * gradients;
                segment.each_chunk(task, [&](const SegmentChunk<T>& chunk, int64_t, int64_t first) {
                    T* const to_chunk =
                        made.first ? taps.data() + (first - base) * 4 * C : out + first * C;
                    segment.kernel.backward(weights, chunk, scratch.data(), grad + first * given,
                                            to_chunk, sums);
                });
            }
        });
        for (int64_t task = from; task < to; ++task) {
            for (int64_t i = 0; i < gradients; ++i) {
                totals[task / runs * gradients + i] += parts[(task - from) * gradients + i];
            }
        }
        if (made.first) {
            add_to_pixels(segment, from, to, taps.data(), out);
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

}  // namespace

std::tuple<Tensor, Tensor> coordinate_query_segment(
    const Tensor& features, const Tensor& weights, const Tensor& folds, const Tensor& y_low,
    const Tensor& y_high, const Tensor& y_t, const Tensor& y_digits, const Tensor& x_low,
    const Tensor& x_high, const Tensor& x_t, const Tensor& x_digits, const Tensor& rel_cell,
    int64_t levels, int64_t heads, int64_t attentions, int64_t segment, const Tensor& state) {
    const QueryArguments in =
        checked_segment({features, weights, folds, y_low, y_high, y_t, y_digits, x_low, x_high, x_t,
                         x_digits, rel_cell, levels, heads, attentions},
                        segment, state);
    STD_TORCH_CHECK(segment < attentions, "the last segment has no state at its end.");
    const int64_t d = in.channels() / heads;
    const Tensor out =
        torch::stable::new_empty(features, {in.batch(), in.columns(), in.channels()});
    const Tensor sums =
        torch::stable::new_zeros(features, {in.batch(), heads, d, d}, ScalarType::Double);
    const auto run = [&]<class T>(T) {
        forward(Segment<T>(in, segment, &state), out.mutable_data_ptr<T>(),
                sums.mutable_data_ptr<double>());
    };
    features.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
    return {out, sums};
}

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

}  // namespace c2d
