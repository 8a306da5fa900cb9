// How the selective scan is laid out on the CPU: blocks of channels, runs of steps, threads. The
// arithmetic is in scan.h and kernel.cpp.
//
// A block is a vector's worth of channels of one image. Threads take runs of steps of all blocks in
// turn, earliest steps first, from one list: the run before is done or in another thread's hands,
// so a sequence never waits for a thread that has not begun, and three blocks keep two threads
// equally busy. Only where there are too few blocks for that, the sequence is cut into as many
// segments as there are threads: their end states from zero first, then, joined in order, their
// true ones; that costs most exponentials twice.
//
// No sum depends on which thread made it. Segments do depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "../common/checks.h"
#include "../common/isa.h"
#include "selective_scan.h"

namespace c2d {

constexpr int64_t kRun = 512;                   // steps of a run; a multiple of both tiles
constexpr int64_t kShortestSegment = 4 * kRun;  // below it a second pass does not pay
constexpr int64_t kMostSets = 8;  // sums of dB and dC kept apart for one image and groups
constexpr int64_t kSmallScan = int64_t{1} << 15;  // batch x channels x states x steps: one thread

template <class T>
const ScanKernels<T>& scan_kernels() {
    if constexpr (sizeof(T) == sizeof(double)) {
        return C2D_FOR_ISA(scan_float64);
    } else {
        return C2D_FOR_ISA(scan_float32);
    }
}

// The operator's arguments, in the order of its schema.
struct ScanArguments {
    Tensor u, delta, A, B, C;
    std::optional<Tensor> D, z, delta_bias;
    bool softplus;

    int64_t batch() const { return u.size(0); }
    int64_t channels() const { return u.size(1); }
    int64_t length() const { return u.size(2); }
    int64_t states() const { return A.size(1); }
    int64_t tiles() const { return (length() + kBackwardTile - 1) / kBackwardTile; }
};

// Makes what is small dense, and refuses what the kernels would read out of bounds.
ScanArguments checked(ScanArguments in);
void check_sequence(const Tensor& tensor, const char* name, const Tensor& u);

inline int64_t groups_of(const Tensor& mixing) { return mixing.dim() == 4 ? mixing.size(1) : 1; }

template <class T>
Sequence<T> sequence(const Tensor& tensor, T* data, int64_t image, int64_t channel) {
    return {data + image * tensor.stride(0) + channel * tensor.stride(1), tensor.stride(1),
            tensor.stride(2)};
}

template <class T>
Mixing<T> mixing(const Tensor& tensor, int64_t image, int64_t channel, int64_t channels) {
    const T* data = tensor.const_data_ptr<T>();
    if (tensor.dim() == 2) {
        return {data + channel * tensor.stride(0), tensor.stride(0), tensor.stride(1), 0, true};
    }
    data += image * tensor.stride(0);
    if (tensor.dim() == 4) {
        data += channel / (channels / tensor.size(1)) * tensor.stride(1);
    }
    const int64_t last = tensor.dim() - 1;
    return {data, 0, tensor.stride(last - 1), tensor.stride(last), false};
}

// Where a block lies, and which buffer of dB and dC it adds to.
struct Place {
    int64_t image, channel, channels, set;
};

// Cuts every image's channels at multiples of `lanes` within each group of B and of C. Sets are
// runs of blocks that share both groups, at most `most_sets` per image and pair of groups.
std::vector<Place> cut(const ScanArguments& in, int lanes, int64_t most_sets);

// Runs task(chain, run) for every run of every chain, runs of a chain in order and one at a time.
template <class Task>
void run_chains(int64_t chains, int64_t runs, int64_t threads, const Task& task) {
    std::atomic<int64_t> next{0};
    std::vector<std::atomic<int64_t>> done(chains);
    torch::stable::parallel_for(0, std::min(threads, chains), 1, [&](int64_t, int64_t) {
        for (int64_t i = next++; i < chains * runs; i = next++) {
            const int64_t chain = i % chains, run = i / chains;
            while (done[chain].load(std::memory_order_acquire) < run) {
                std::this_thread::yield();
            }
            task(chain, run);
            done[chain].store(run + 1, std::memory_order_release);
        }
    });
}

template <class T>
class Scan {
  public:
    explicit Scan(const ScanArguments& arguments)
        : in(arguments),
          kernel(scan_kernels<T>()),
          places(cut(arguments, kernel.lanes, kMostSets)),
          vector(kernel.lanes),
          state_numbers(kernel.padded_states(arguments.states()) * kernel.lanes),
          threads(torch::stable::get_num_threads()) {
        const int64_t work = in.batch() * in.channels() * in.states() * in.length();
        threads = work < kSmallScan ? 1 : threads;
        const int64_t wanted = blocks() > 0 && 2 * blocks() <= threads ? threads / blocks() : 1;
        segments = std::clamp<int64_t>(in.length() / kShortestSegment, 1, wanted);
        segment = (in.length() + segments - 1) / segments;
        segment = segments == 1 ? in.length() : (segment + kRun - 1) / kRun * kRun;
        segments = (in.length() + segment - 1) / segment;
    }

    int64_t blocks() const { return static_cast<int64_t>(places.size()); }

    ScanBlock<T> block(int64_t index) const {
        const Place& place = places[index];
        const auto input = [&](const Tensor& tensor) {
            return sequence<const T>(tensor, tensor.const_data_ptr<T>(), place.image,
                                     place.channel);
        };
        const auto channel_vector = [&](const std::optional<Tensor>& tensor) {
            return tensor ? tensor->const_data_ptr<T>() + place.channel : nullptr;
        };
        ScanBlock<T> made = {};
        made.channels = place.channels;
        made.states = in.states();
        made.softplus = in.softplus;
        made.u = input(in.u);
        made.delta = input(in.delta);
        made.z = in.z ? input(*in.z) : Sequence<const T>{};
        made.B = mixing<T>(in.B, place.image, place.channel, in.channels());
        made.C = mixing<T>(in.C, place.image, place.channel, in.channels());
        made.A = in.A.const_data_ptr<T>() + place.channel * in.states();
        made.D = channel_vector(in.D);
        made.delta_bias = channel_vector(in.delta_bias);
        return made;
    }

    // Between the vectors of a block and a dense (batch, channels, states) or (channels, states).
    void put(int64_t index, const T* vectors, T* to) const {
        const Place& place = places[index];
        for (int64_t c = 0; c < place.channels; ++c) {
            for (int64_t n = 0; n < in.states(); ++n) {
                to[(place.channel + c) * in.states() + n] = vectors[n * vector + c];
            }
        }
    }
    void take(int64_t index, const T* from, T* vectors) const {
        const Place& place = places[index];
        for (int64_t c = 0; c < place.channels; ++c) {
            for (int64_t n = 0; n < in.states(); ++n) {
                vectors[n * vector + c] = from[(place.channel + c) * in.states() + n];
            }
        }
    }

    // Calls task(block, segment, begin, end) for every segment of every block, in parallel.
    template <class Task>
    void each_segment(const Task& task) const {
        torch::stable::parallel_for(0, blocks() * segments, 1, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) {
                const int64_t s = i % segments;
                task(i / segments, s, s * segment, std::min((s + 1) * segment, in.length()));
            }
        });
    }

    // (batch, tiles, states, channels): the state before every kBackwardTile-th step. The first is
    // zero, which tells states from a tensor that nobody filled.
    Tensor new_checkpoints() const {
        return torch::stable::new_empty(in.A, {in.batch(), in.tiles(), in.states(), in.channels()});
    }
    Checkpoints<T> checkpoints(T* data, int64_t index, int64_t step) const {
        const int64_t tile_stride = in.states() * in.channels();
        const int64_t tile = places[index].image * in.tiles() + step / kBackwardTile;
        return {data + tile * tile_stride + places[index].channel, tile_stride, in.channels()};
    }

    // Runs all steps: y and the last states, where wanted, and the checkpoints, where given.
    void run(const Tensor* y, T* checkpoint_data, T* last);

    // What delta sums to in each segment, and from there the states before the segments.
    std::vector<T> segment_delta_sums, segment_states;
    void find_segment_states();

    int64_t runs() const { return (in.length() + kRun - 1) / kRun; }
    int64_t run_end(int64_t run) const { return std::min((run + 1) * kRun, in.length()); }

    const ScanArguments& in;
    const ScanKernels<T>& kernel;
    const std::vector<Place> places;
    int64_t vector, state_numbers;       // numbers in a vector of channels, and in a block's state
    int64_t threads, segments, segment;  // segments of each sequence, and the steps of one
};

template <class T>
void Scan<T>::find_segment_states() {
    std::vector<T> local(blocks() * segments * state_numbers, T(0));
    segment_states.assign(blocks() * segments * state_numbers, T(0));
    segment_delta_sums.assign(blocks() * segments * vector, T(0));
    each_segment([&](int64_t b, int64_t s, int64_t begin, int64_t end) {
        const int64_t i = b * segments + s;
        kernel.forward(block(b), begin, end, &local[i * state_numbers],
                       &segment_delta_sums[i * vector], {});
    });
    for (int64_t b = 0; b < blocks(); ++b) {
        for (int64_t i = b * segments; i + 1 < (b + 1) * segments; ++i) {
            kernel.join(block(b), &segment_delta_sums[i * vector],
                        &segment_states[i * state_numbers], &local[i * state_numbers],
                        &segment_states[(i + 1) * state_numbers]);
        }
    }
}

template <class T>
void Scan<T>::run(const Tensor* y, T* checkpoint_data, T* last) {
    T* y_data = y ? y->mutable_data_ptr<T>() : nullptr;
    const auto steps = [&](int64_t b, int64_t s, int64_t begin, int64_t end) {
        ScanBlock<T> made = block(b);
        if (y) {
            made.y = sequence<T>(*y, y_data, places[b].image, places[b].channel);
        }
        kernel.forward(made, begin, end, &segment_states[(b * segments + s) * state_numbers],
                       nullptr,
                       checkpoint_data ? checkpoints(checkpoint_data, b, begin) : Checkpoints<T>{});
    };
    if (segments > 1) {
        find_segment_states();
        each_segment(steps);
    } else {
        segment_states.assign(blocks() * state_numbers, T(0));
        run_chains(blocks(), runs(), threads,
                   [&](int64_t b, int64_t run) { steps(b, 0, run * kRun, run_end(run)); });
    }
    for (int64_t b = 0; last && b < blocks(); ++b) {
        put(b, &segment_states[((b + 1) * segments - 1) * state_numbers],
            last + places[b].image * in.channels() * in.states());
    }
}

}  // namespace c2d
