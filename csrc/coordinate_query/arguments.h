// The arguments of the coordinate query's CPU kernels, and where the weights lie in their one line.
#pragma once

#include <vector>

#include "../common/checks.h"
#include "coordinate_query.h"

namespace c2d {

// The operators' arguments. `weights` are the decoder's in one line, in the order that Decoder
// takes them; `folds` (attentions done, batch, width^2 + width) hold proj1 folded with the
// attention before it. Positions are those of positions.py: low, high and t of each axis, and its
// digits (levels, ...); axes of a grid are 1-D, free queries have (batch, queries).
struct QueryArguments {
    Tensor features, weights, folds;
    Tensor y_low, y_high, y_t, y_digits, x_low, x_high, x_t, x_digits, rel_cell;
    int64_t levels, heads, attentions;

    int64_t batch() const { return features.size(0); }
    int64_t height() const { return features.size(1); }
    int64_t width() const { return features.size(2); }
    int64_t channels() const { return features.size(3); }
    bool grid() const { return y_t.dim() == 1; }
    int64_t rows() const { return grid() ? y_t.size(0) : 1; }
    int64_t columns() const { return x_t.size(x_t.dim() - 1); }
};

// Where the decoder's weights lie in `weights`. A Linear's matrix is (outputs, inputs), its bias
// behind it.
struct QueryLine {
    struct Linear {
        int64_t at, outputs, inputs;
        int64_t bias() const { return at + outputs * inputs; }
    };
    struct Attention {
        Linear key_value;
        int64_t norms;  // gain and bias of the keys', then of the values' LayerNorm
        Linear proj2;
    };

    // The first fc1: a matrix (C, C) for each neighbour, the other columns (C, kExtras), row sums,
    // bias.
    int64_t taps = 0, extras, row_sums, bias;
    Linear fc1[kMostLevels], fc2[kMostLevels];  // fc1 from level 1 on
    Attention attention[kMostLevels];
    int64_t numbers;

    explicit QueryLine(const QueryArguments& in) {
        const int64_t C = in.channels();
        int64_t next = kNeighbours * C * C;
        const auto take = [&](int64_t count) {
            const int64_t here = next;
            next += count;
            return here;
        };
        const auto linear = [&](int64_t outputs, int64_t inputs) {
            return Linear{take(outputs * inputs + outputs), outputs, inputs};
        };
        extras = take(kExtras * C);
        row_sums = take(C);
        bias = take(C);
        for (int64_t l = 0; l < in.levels; ++l) {
            if (l > 0) {
                fc1[l] = linear(C, C + kCoordinates);
            }
            fc2[l] = linear(l + 1 < in.levels ? C : 3, C);
        }
        for (int64_t a = 0; a < in.attentions; ++a) {
            attention[a].key_value = linear(2 * C, C);
            attention[a].norms = take(4 * (C / in.heads));
            attention[a].proj2 = linear(C, C);
        }
        numbers = next;
    }
};

// Refuses what the kernels would read out of bounds, positions included.
inline QueryArguments checked(QueryArguments in) {
    check_floating_cpu(in.features, "features", 4);
    const ScalarType type = in.features.scalar_type();
    const int64_t C = in.channels();
    STD_TORCH_CHECK(C >= 1 && C <= kMostWidth && in.levels >= 1 && in.levels <= kMostLevels &&
                        in.attentions >= 0 && in.attentions < in.levels && in.heads >= 1 &&
                        C % in.heads == 0 && in.height() >= 1 && in.width() >= 1,
                    "a decoder of ", C, " channels, ", in.levels, " levels, ", in.heads,
                    " heads and ", in.attentions, " attentions is not supported by this kernel.");
    in.features = dense_channels(in.features);
    in.weights = torch::stable::contiguous(in.weights);
    in.folds = torch::stable::contiguous(in.folds);
    STD_TORCH_CHECK(in.folds.dim() == 3 && in.folds.size(0) <= in.attentions &&
                        in.folds.size(1) == in.batch() && in.folds.size(2) == C * C + C,
                    "folds must be (attentions done, batch, width^2 + width).");
    STD_TORCH_CHECK(in.weights.numel() == QueryLine(in).numbers,
                    "weights do not hold what this decoder takes.");
    for (Tensor* tensor : {&in.y_t, &in.x_t, &in.y_digits, &in.x_digits, &in.rel_cell}) {
        *tensor = torch::stable::contiguous(*tensor);
    }
    for (const Tensor* tensor :
         {&in.weights, &in.folds, &in.y_t, &in.x_t, &in.y_digits, &in.x_digits, &in.rel_cell}) {
        STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == type,
                        "weights and positions must be CPU tensors of the type of features.");
    }
    const bool grid = in.y_t.dim() == 1 && in.x_t.dim() == 1;
    STD_TORCH_CHECK(
        grid || (in.y_t.dim() == 2 && in.x_t.dim() == 2 && in.y_t.size(0) == in.batch() &&
                 in.x_t.size(0) == in.batch() && in.y_t.size(1) == in.x_t.size(1)),
        "positions must be two axes of a grid or (batch, queries) twice.");
    STD_TORCH_CHECK(in.y_digits.numel() == in.levels * in.y_t.numel() &&
                        in.x_digits.numel() == in.levels * in.x_t.numel() &&
                        in.rel_cell.dim() == 2 && in.rel_cell.size(1) == 2 &&
                        (in.rel_cell.size(0) == 1 || in.rel_cell.size(0) == in.batch()),
                    "digits must be one for each level and position, rel_cell (batch or 1, 2).");
    const auto check_places = [](Tensor* places, const Tensor& t, int64_t length) {
        *places = torch::stable::contiguous(*places);
        STD_TORCH_CHECK(places->is_cpu() && places->scalar_type() == ScalarType::Long &&
                            places->numel() == t.numel(),
                        "neighbours must be int64, one a position.");
        const int64_t* data = places->const_data_ptr<int64_t>();
        for (int64_t i = 0; i < places->numel(); ++i) {
            STD_TORCH_CHECK(data[i] >= 0 && data[i] < length, "neighbours must be on the map.");
        }
    };
    check_places(&in.y_low, in.y_t, in.height());
    check_places(&in.y_high, in.y_t, in.height());
    check_places(&in.x_low, in.x_t, in.width());
    check_places(&in.x_high, in.x_t, in.width());
    return in;
}

}  // namespace c2d
