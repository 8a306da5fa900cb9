// A segment of the coordinate query's decoder (backward.h) on the host: its weights in both
// orientations, the queries of a task in chunks, and where its gradients go.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/isa.h"
#include "arguments.h"
#include "backward.h"

namespace c2d {

constexpr int64_t kRun = 16 * kSegmentChunk;  // queries of a task

template <class T>
const SegmentKernels<T>& segment_kernels() {
    if constexpr (sizeof(T) == sizeof(double)) {
        return C2D_FOR_ISA(segment_float64);
    } else {
        return C2D_FOR_ISA(segment_float32);
    }
}

inline int64_t filled_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// One segment of a call: its weights in both orientations, and what tasks do with it.
template <class T>
class Segment {
  public:
    Segment(const QueryArguments& arguments, int64_t number, const Tensor* state)
        : in(arguments), kernel(segment_kernels<T>()), line(arguments), number_(number) {
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
        }
        shared_ = gradients_;
        if (!made.first) {
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
    int64_t shared() const { return shared_; }  // of these for all images; the others for its own
    int64_t own() const { return gradients_ - shared_; }

    // Calls use(chunk, first query of all images) for every chunk of a task.
    template <class Use>
    void each_chunk(int64_t task, const Use& use) const;

    // The tables of the gradient of k^T v, (batch, heads, d, d), for the kernel.
    void take_moment_grad(const Tensor& grad) {
        const int64_t d = made.head_dim(), row = filled_up(d, kernel.lanes);
        const int64_t heads = in.batch() * in.heads;
        const T* from = grad.const_data_ptr<T>();
        for (int transposed = 0; transposed < 2; ++transposed) {
            std::vector<T>& table = store.emplace_back(heads * d * row);
            for (int64_t place = 0; place < heads * d * d; ++place) {
                const int64_t head = place / (d * d), i = place / d % d, j = place % d;
                table[(head * d + (transposed ? j : i)) * row + (transposed ? i : j)] = from[place];
            }
            (transposed ? made.moment_grad_transposed : made.moment_grad) = table.data();
        }
    }

    // The segment with the table of an image.
    QuerySegment<T> for_image(int64_t image) const {
        QuerySegment<T> segment = made;
        if (made.sums && made.moment_grad != nullptr) {
            const int64_t d = made.head_dim();
            const int64_t numbers = in.heads * d * filled_up(d, kernel.lanes);
            segment.moment_grad += image * numbers;
            segment.moment_grad_transposed += image * numbers;
        }
        return segment;
    }

    // Puts the sums over tasks, shared() and then [images][own()], where weights and folds
    // lie.
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
        const int64_t C = in.channels(), inputs = kNeighbours * C + kExtras;
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
        const int64_t extra = input - kNeighbours * C;
        return extra < 0 ? line.taps + (input / C * C + output) * C + input % C
                         : line.extras + output * kExtras + extra;
    }

    std::vector<std::vector<T>> store;
    std::vector<TwoWays<T>> folds;
    const T* state_ = nullptr;
    int64_t number_, gradients_ = 0, shared_ = 0;
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
    const int64_t down = in.features.stride(1), across = in.features.stride(2);
    const int64_t of_level = in.batch() * Q;
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
            const T weights[kNeighbours] = {(1 - ty) * (1 - tx), (1 - ty) * tx, ty * (1 - tx),
                                            ty * tx};
            for (int64_t tap = 0; tap < kNeighbours; ++tap) {
                chunk.features[tap][i] = features + (tap < 2 ? y_low : y_high)[q] * down +
                                         (tap % 2 == 0 ? x_low : x_high)[q] * across;
                chunk.weight[tap][i] = weights[tap];
            }
            for (int64_t l = 0; l < made.levels; ++l) {
                const int64_t level = (number_ + l) * of_level;
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
        layer(of, totals.data(), line_grad + at.at, line_grad + at.bias());
    };
    for (int64_t l = 0; l < made.levels; ++l) {
        to_line(made.fc2[l], line.fc2[number_ + l]);
        if (number_ + l > 0) {
            to_line(made.fc1[l], line.fc1[number_ + l]);
            continue;
        }
        std::vector<T> matrix(C * made.fc1[0].inputs);
        layer(made.fc1[0], totals.data(), matrix.data(), line_grad + line.bias);
        for (int64_t i = 0; i < static_cast<int64_t>(matrix.size()); ++i) {
            line_grad[first_place(i / made.fc1[0].inputs, i % made.fc1[0].inputs)] = matrix[i];
        }
    }
    if (made.sums) {
        to_line(made.key_value, line.attention[number_].key_value);
        for (int64_t i = 0; i < 4 * made.head_dim(); ++i) {
            line_grad[line.attention[number_].norms + i] =
                static_cast<T>(totals[made.norms_at + i]);
        }
    }
    if (!made.first) {
        to_line(made.proj2, line.attention[number_ - 1].proj2);
        for (int64_t image = 0; image < in.batch(); ++image) {
            T* fold = fold_grad + image * (C * C + C);
            layer(folds[image], totals.data() + image * own(), fold, fold + C * C);
        }
    }
}

}  // namespace c2d
