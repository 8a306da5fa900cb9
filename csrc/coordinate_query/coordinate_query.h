// What one instruction set offers for the coordinate query: tables of LR pixels, and the decoder
// over a chunk of queries. kernel.cpp defines it once per instruction set; the host side in
// host.cpp walks bands of the picture and never touches an element.
#pragma once

#include <stdint.h>

namespace c2d {

constexpr int64_t kChunk = 64;  // queries decoded together; a multiple of two vectors of any type
constexpr int64_t kNeighbours = 4;     // LR pixels around a query: 00, 01, 10, 11
constexpr int64_t kExtras = 4;         // beside them in the first fc1: rel_cell, digits of level 0
constexpr int64_t kMostWidth = 256;    // channels
constexpr int64_t kMostLevels = 16;    // MLPs
constexpr double kNormEpsilon = 1e-5;  // of every LayerNorm
constexpr int64_t kCoordinates = 2;    // y and x: of rel_cell, of the digits of a level

// Where the digits of a level are among what queries see beside features: behind rel_cell and those
// of the levels before.
constexpr int64_t digits_at(int64_t level) { return kCoordinates * (1 + level); }

// A Linear, its matrix in panels of `panel` outputs: matrix[outputs / panel][inputs][panel].
template <class T>
struct Dense {
    const T *matrix, *bias;
    int64_t inputs, outputs;
};

// The decoder's weights, folded: LayerNorms' gains and offsets belong to the Linear after them.
template <class T>
struct QueryLevel {
    Dense<T> fc1, fc2;  // level 0 has no fc1: see QueryDecoder
};

template <class T>
struct QueryAttention {
    Dense<T> key_value;                                      // k above v
    const T *key_gain, *key_bias, *value_gain, *value_bias;  // of the LayerNorms over a head
    Dense<T> proj2;
};

template <class T>
struct QueryDecoder {
    int64_t width, levels, heads, attentions;
    Dense<T> taps;  // the first fc1 on each of the neighbours: width -> kNeighbours width
    const T *extras, *row_sums, *bias;  // its other columns [width][kExtras], rows' sums, bias
    QueryLevel<T> level[kMostLevels];
    QueryAttention<T> attention[kMostLevels];
};

// Numbers of one row of a table: the neighbours' products, then the pixel's mean and sum of squares
// about it, with room for whole vectors.
template <class T>
struct TableRow {
    int64_t stride, product_stride, mean, squares;
};

// Queries of one image, at most kChunk. Arrays are [..][kChunk].
template <class T>
struct QueryChunk {
    int64_t count;
    const T* table;        // rows of TableRow::stride
    const int64_t* row;    // [kNeighbours][kChunk]: the row of each neighbour
    const T* weight;       // [kNeighbours][kChunk]: its bilinear weight
    const T* extra;        // [digits_at(levels)][kChunk]: rel_cell y, x; then digits y, x per level
    const Dense<T>* fold;  // [attentions done]: proj1 with the attention before it
};

template <class T>
struct QueryKernels {
    int64_t lanes, panel;
    TableRow<T> (*table_row)(int64_t width);

    // matrix (outputs, inputs), dense, into panels; returns how many numbers that takes, also
    // without a place to put them.
    int64_t (*pack)(const T* matrix, int64_t outputs, int64_t inputs, T* panels);

    // Table rows of `count` pixels whose channels lie side by side, `stride` apart.
    void (*table)(const QueryDecoder<T>& decoder, const T* features, int64_t stride, int64_t count,
                  T* rows);

    // Adds k^T v over the chunk in attention number `stop` to moments[heads][d][d].
    void (*moments)(const QueryDecoder<T>& decoder, const QueryChunk<T>& chunk, int64_t stop,
                    double* moments);

    // values[3][kChunk]: the decoder's RGB, without the bilinear picture.
    void (*decode)(const QueryDecoder<T>& decoder, const QueryChunk<T>& chunk, T* values);
};

#define C2D_DECLARE_QUERY(isa)                       \
    namespace isa {                                  \
    extern const QueryKernels<float> query_float32;  \
    extern const QueryKernels<double> query_float64; \
    }

C2D_DECLARE_QUERY(baseline)
#if defined(__x86_64__)
C2D_DECLARE_QUERY(avx2)
C2D_DECLARE_QUERY(avx512)
#endif

#undef C2D_DECLARE_QUERY

}  // namespace c2d
