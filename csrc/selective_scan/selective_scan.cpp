// The selective scan on the CPU, host side: blocks of channels, runs of steps, threads and scratch
// memory. The arithmetic is in scan.h and cpu.cpp.
//
// A block is a vector's worth of channels of one image. Threads take runs of steps of all blocks in
// turn, earliest steps first, from one list: the run before is done or in another thread's hands,
// so a sequence never waits for a thread that has not begun, and three blocks keep two threads
// equally busy. Only where there are too few blocks for that, the sequence is cut into as many
// segments as there are threads: their end states from zero first, then, joined in order, their
// true ones; that costs most exponentials twice.
//
// No sum depends on which thread made it. Segments do depend on the number of threads.
#include "selective_scan.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "../common/isa.h"
#include "../kernels.h"

namespace c2d {
namespace {

constexpr int64_t kRun = 512;                     // steps of a run; a multiple of both tiles
constexpr int64_t kShortestSegment = 4 * kRun;    // below it a second pass does not pay
constexpr int64_t kSmallScan = int64_t{1} << 15;  // batch x channels x states x steps: one thread
constexpr int64_t kMostSets = 8;  // buffers of dB and dC that are kept for one image and group

template <class T>
const ScanKernels<T>& kernels();
template <>
const ScanKernels<float>& kernels<float>() {
    return C2D_FOR_ISA(scan_float32);
}
template <>
const ScanKernels<double>& kernels<double>() {
    return C2D_FOR_ISA(scan_float64);
}

using Optional = std::optional<Tensor>;

// The operator's arguments, in the order of its schema.
struct Arguments {
    const Tensor &u, &delta, &A, &B, &C;
    const Optional &D, &z, &delta_bias;
    bool softplus;

    int64_t batch() const { return u.size(0); }
    int64_t channels() const { return u.size(1); }
    int64_t length() const { return u.size(2); }
    int64_t states() const { return A.size(1); }
};

int64_t groups_of(const Tensor& mixing) { return mixing.dim() == 4 ? mixing.size(1) : 1; }

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
// runs of blocks that share both groups, at most kMostSets an image and pair of groups.
std::vector<Place> cut(const Arguments& in, int lanes) {
    const int64_t channels = in.channels();
    const int64_t width_B = channels / groups_of(in.B), width_C = channels / groups_of(in.C);
    std::vector<Place> places;
    int64_t set = -1;
    for (int64_t image = 0; image < in.batch(); ++image) {
        for (int64_t begin = 0; begin < channels;) {
            const int64_t end =
                std::min((begin / width_B + 1) * width_B, (begin / width_C + 1) * width_C);
            const int64_t blocks = (end - begin + lanes - 1) / lanes;
            const int64_t of_a_set = (blocks + kMostSets - 1) / kMostSets;
            for (int64_t i = 0; i < blocks; ++i) {
                set += i % of_a_set == 0;
                const int64_t channel = begin + i * lanes;
                places.push_back({image, channel, std::min<int64_t>(lanes, end - channel), set});
            }
            begin = end;
        }
    }
    return places;
}

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
    explicit Scan(const Arguments& arguments)
        : in(arguments),
          kernel(kernels<T>()),
          places(cut(arguments, kernel.lanes)),
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

    std::tuple<Tensor, Tensor> forward();
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
        const Tensor& grad_y, const Tensor& grad_state);

  private:
    int64_t blocks() const { return static_cast<int64_t>(places.size()); }

    ScanBlock<T> block(int64_t index) const {
        const Place& place = places[index];
        const auto input = [&](const Tensor& tensor) {
            return sequence<const T>(tensor, tensor.const_data_ptr<T>(), place.image,
                                     place.channel);
        };
        const auto channel_vector = [&](const Optional& tensor) {
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

    // The states before each segment, and what delta sums to in it.
    void segment_states(std::vector<T>& states, std::vector<T>& delta_sums) const;

    const Arguments& in;
    const ScanKernels<T>& kernel;
    std::vector<Place> places;
    int64_t vector, state_numbers, threads, segments, segment;
};

template <class T>
void Scan<T>::segment_states(std::vector<T>& states, std::vector<T>& delta_sums) const {
    std::vector<T> local(blocks() * segments * state_numbers, T(0));
    delta_sums.assign(blocks() * segments * vector, T(0));
    each_segment([&](int64_t b, int64_t s, int64_t begin, int64_t end) {
        const int64_t i = b * segments + s;
        kernel.forward(block(b), begin, end, &local[i * state_numbers], &delta_sums[i * vector],
                       nullptr);
    });
    for (int64_t b = 0; b < blocks(); ++b) {
        for (int64_t i = b * segments; i + 1 < (b + 1) * segments; ++i) {
            kernel.join(block(b), &delta_sums[i * vector], &states[i * state_numbers],
                        &local[i * state_numbers], &states[(i + 1) * state_numbers]);
        }
    }
}

template <class T>
std::tuple<Tensor, Tensor> Scan<T>::forward() {
    const Tensor y = torch::stable::empty_like(in.u);
    const Tensor last = torch::stable::new_empty(in.A, {in.batch(), in.channels(), in.states()});
    T* y_data = y.mutable_data_ptr<T>();
    const auto with_y = [&](int64_t b) {
        ScanBlock<T> made = block(b);
        made.y = sequence<T>(y, y_data, places[b].image, places[b].channel);
        return made;
    };
    std::vector<T> states(blocks() * segments * state_numbers, T(0));
    if (segments > 1) {
        std::vector<T> delta_sums;
        segment_states(states, delta_sums);
        each_segment([&](int64_t b, int64_t s, int64_t begin, int64_t end) {
            kernel.forward(with_y(b), begin, end, &states[(b * segments + s) * state_numbers],
                           nullptr, nullptr);
        });
    } else {
        const int64_t runs = (in.length() + kRun - 1) / kRun;
        run_chains(blocks(), runs, threads, [&](int64_t b, int64_t run) {
            kernel.forward(with_y(b), run * kRun, std::min((run + 1) * kRun, in.length()),
                           &states[b * state_numbers], nullptr, nullptr);
        });
    }
    T* last_data = last.mutable_data_ptr<T>();
    for (int64_t b = 0; b < blocks(); ++b) {
        put(b, &states[((b + 1) * segments - 1) * state_numbers],
            last_data + places[b].image * in.channels() * in.states());
    }
    return {y, last};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> Scan<T>::backward(
    const Tensor& grad_y, const Tensor& grad_state) {
    const auto empty = [&](const Tensor& like) {
        return torch::stable::new_empty(like, like.sizes());
    };
    const auto zeros = [&](const Tensor& like) {
        return torch::stable::new_zeros(like, like.sizes());
    };
    const auto if_given = [&](const Optional& like, const auto& make) {
        return like ? make(*like) : torch::stable::new_empty(in.u, {0});
    };
    const Tensor du = empty(in.u), ddelta = empty(in.delta), dz = if_given(in.z, empty);
    const Tensor dA = zeros(in.A), dD = if_given(in.D, zeros);
    const Tensor dbias = if_given(in.delta_bias, zeros);
    const bool constant_B = in.B.dim() == 2, constant_C = in.C.dim() == 2;
    const Tensor dB = constant_B ? zeros(in.B) : empty(in.B);
    const Tensor dC = constant_C ? zeros(in.C) : empty(in.C);
    const int64_t length = in.length(), states = in.states();
    const int64_t tiles = (length + kBackwardTile - 1) / kBackwardTile;

    // The states before every tile.
    const Tensor checkpoint_tensor =
        torch::stable::new_empty(in.A, {blocks() * tiles * state_numbers});
    T* checkpoints = checkpoint_tensor.mutable_data_ptr<T>();
    const auto checkpoint = [&](int64_t b, int64_t step) {
        return checkpoints + (b * tiles + step / kBackwardTile) * state_numbers;
    };
    std::vector<T> before(blocks() * segments * state_numbers, T(0)), delta_sums;
    const int64_t runs = (length + kRun - 1) / kRun;
    const auto run_end = [&](int64_t run) { return std::min((run + 1) * kRun, length); };
    if (segments > 1) {
        segment_states(before, delta_sums);
        each_segment([&](int64_t b, int64_t s, int64_t begin, int64_t end) {
            kernel.forward(block(b), begin, end, &before[(b * segments + s) * state_numbers],
                           nullptr, checkpoint(b, begin));
        });
    } else {
        run_chains(blocks(), runs, threads, [&](int64_t b, int64_t run) {
            kernel.forward(block(b), run * kRun, run_end(run), &before[b * state_numbers], nullptr,
                           checkpoint(b, run * kRun));
        });
    }

    // Sums over the steps, one place a block and segment: dA, dB, dC, dD, d(delta_bias).
    const int64_t sum_numbers = 3 * state_numbers + 2 * vector;
    std::vector<T> sums(blocks() * segments * sum_numbers, T(0));
    std::vector<T> adjoints(blocks() * segments * state_numbers, T(0));
    const T* grad_state_data = grad_state.const_data_ptr<T>();
    for (int64_t b = 0; b < blocks(); ++b) {
        take(b, grad_state_data + places[b].image * in.channels() * states,
             &adjoints[((b + 1) * segments - 1) * state_numbers]);
    }
    const int64_t columns = 2 * state_numbers / vector;
    const int64_t sets = blocks() == 0 ? 0 : places.back().set + 1;
    const bool mixes = !constant_B || !constant_C;
    const Tensor mixing_tensor =
        torch::stable::new_empty(in.A, {mixes ? sets * length * columns : 0});
    T* mixing_sums = mixing_tensor.mutable_data_ptr<T>();
    const auto dy_of = [&](int64_t b) {
        return sequence<const T>(grad_y, grad_y.const_data_ptr<T>(), places[b].image,
                                 places[b].channel);
    };
    const auto sweep = [&](int64_t b, int64_t s, int64_t begin, int64_t end) {
        const Place& place = places[b];
        const auto output = [&](const Tensor& tensor) {
            return sequence<T>(tensor, tensor.mutable_data_ptr<T>(), place.image, place.channel);
        };
        ScanGradients<T> to = {};
        to.dy = dy_of(b);
        to.du = output(du);
        to.ddelta = output(ddelta);
        to.dz = in.z ? output(dz) : Sequence<T>{};
        to.mixing = mixes ? mixing_sums + (place.set * length + begin) * columns : nullptr;
        to.accumulate = b > 0 && places[b - 1].set == place.set;
        to.dA = &sums[(b * segments + s) * sum_numbers];
        to.dB = to.dA + state_numbers;
        to.dC = to.dB + state_numbers;
        to.dD = to.dC + state_numbers;
        to.ddelta_bias = to.dD + vector;
        kernel.backward(block(b), to, begin, end, checkpoint(b, begin),
                        &adjoints[(b * segments + s) * state_numbers]);
    };
    std::vector<int64_t> first_of_set;
    for (int64_t b = 0; b < blocks(); ++b) {
        if (b == 0 || places[b].set != places[b - 1].set) {
            first_of_set.push_back(b);
        }
    }
    first_of_set.push_back(blocks());
    if (segments > 1) {
        std::vector<T> local(blocks() * segments * state_numbers, T(0));
        each_segment([&](int64_t b, int64_t s, int64_t begin, int64_t end) {
            kernel.adjoint(block(b), dy_of(b), begin, end,
                           &local[(b * segments + s) * state_numbers]);
        });
        for (int64_t b = 0; b < blocks(); ++b) {
            for (int64_t i = (b + 1) * segments - 1; i > b * segments; --i) {
                kernel.join(block(b), &delta_sums[i * vector], &adjoints[i * state_numbers],
                            &local[i * state_numbers], &adjoints[(i - 1) * state_numbers]);
            }
        }
        // Blocks of one set add to one buffer: one task.
        torch::stable::parallel_for(0, sets * segments, 1, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) {
                const int64_t s = i % segments, set = i / segments;
                for (int64_t b = first_of_set[set]; b < first_of_set[set + 1]; ++b) {
                    sweep(b, s, s * segment, std::min((s + 1) * segment, length));
                }
            }
        });
    } else {
        run_chains(sets, runs, threads, [&](int64_t set, int64_t i) {
            const int64_t run = runs - 1 - i;
            for (int64_t b = first_of_set[set]; b < first_of_set[set + 1]; ++b) {
                sweep(b, 0, run * kRun, run_end(run));
            }
        });
    }

    // dB and dC of an image and group: the sum of its sets, in order.
    const auto collect = [&](const Tensor& gradient, bool is_B) {
        const int64_t groups = groups_of(gradient), width = in.channels() / groups;
        T* data = gradient.mutable_data_ptr<T>();
        torch::stable::parallel_for(
            0, in.batch() * groups * runs, 1, [&](int64_t from, int64_t to) {
                for (int64_t i = from; i < to; ++i) {
                    const int64_t pair = i / runs, begin = i % runs * kRun;
                    std::vector<const T*> parts;
                    for (int64_t set = 0; set < sets; ++set) {
                        const Place& place = places[first_of_set[set]];
                        if (place.image * groups + place.channel / width == pair) {
                            parts.push_back(mixing_sums + (set * length + begin) * columns);
                        }
                    }
                    T* out = data + pair * states * length + begin;
                    kernel.sum_mixing(parts.data(), static_cast<int64_t>(parts.size()), states,
                                      run_end(i % runs) - begin, is_B ? out : nullptr,
                                      is_B ? nullptr : out, length);
                }
            });
    };
    // Constant matrices and vectors: sums over segments and images, in order.
    const auto add = [&](const Tensor& gradient, int64_t offset, int64_t per_channel) {
        T* data = gradient.mutable_data_ptr<T>();
        for (int64_t i = 0; i < blocks() * segments; ++i) {
            const Place& place = places[i / segments];
            const T* from = &sums[i * sum_numbers + offset];
            for (int64_t c = 0; c < place.channels; ++c) {
                for (int64_t n = 0; n < per_channel; ++n) {
                    data[(place.channel + c) * per_channel + n] += from[n * vector + c];
                }
            }
        }
    };
    add(dA, 0, states);
    constant_B ? add(dB, state_numbers, states) : collect(dB, true);
    constant_C ? add(dC, 2 * state_numbers, states) : collect(dC, false);
    if (in.D) {
        add(dD, 3 * state_numbers, 1);
    }
    if (in.delta_bias) {
        add(dbias, 3 * state_numbers + vector, 1);
    }
    return {du, ddelta, dA, dB, dC, dD, dz, dbias};
}

void check_sequence(const Tensor& tensor, const char* name, const Tensor& u) {
    check_floating_cpu(tensor, name, 3);
    check_same(tensor, name, u, "u");
}

void check_vector(const Optional& tensor, const char* name, const Tensor& u) {
    if (tensor) {
        check_floating_cpu(*tensor, name, 1);
        STD_TORCH_CHECK(tensor->scalar_type() == u.scalar_type() && tensor->size(0) == u.size(1),
                        name, " must have one number a channel, of the type of u.");
    }
}

void check_mixing(const Tensor& tensor, const char* name, const Tensor& u, int64_t states) {
    const int64_t dims = tensor.dim();
    check_floating_cpu(tensor, name, dims);
    const bool constant = dims == 2 && tensor.size(0) == u.size(1) && tensor.size(1) == states;
    const bool varying = (dims == 3 || dims == 4) && tensor.size(0) == u.size(0) &&
                         tensor.size(dims - 2) == states && tensor.size(dims - 1) == u.size(2) &&
                         groups_of(tensor) > 0 && u.size(1) % groups_of(tensor) == 0;
    STD_TORCH_CHECK(tensor.scalar_type() == u.scalar_type() && (constant || varying), name,
                    " must be (D, N), (batch, N, L) or (batch, G, N, L), of the type of u.");
}

void check(const Arguments& in) {
    check_floating_cpu(in.u, "u", 3);
    check_sequence(in.delta, "delta", in.u);
    check_floating_cpu(in.A, "A", 2);
    STD_TORCH_CHECK(in.A.scalar_type() == in.u.scalar_type() && in.A.size(0) == in.channels() &&
                        in.states() >= 1 && in.states() <= 256 && in.channels() >= 1 &&
                        in.length() >= 1,
                    "A must be (D, N) of the type of u, with 1 to 256 states, and u not empty.");
    check_mixing(in.B, "B", in.u, in.states());
    check_mixing(in.C, "C", in.u, in.states());
    check_vector(in.D, "D", in.u);
    check_vector(in.delta_bias, "delta_bias", in.u);
    if (in.z) {
        check_sequence(*in.z, "z", in.u);
    }
}

Optional dense(const Optional& tensor) {
    return tensor ? Optional(torch::stable::contiguous(*tensor)) : tensor;
}

}  // namespace

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                          const Tensor& B, const Tensor& C, Optional D, Optional z,
                                          Optional delta_bias, bool delta_softplus) {
    const Tensor A_dense = torch::stable::contiguous(A);
    const Optional D_dense = dense(D), bias_dense = dense(delta_bias);
    const Arguments in{u, delta, A_dense, B, C, D_dense, z, bias_dense, delta_softplus};
    check(in);
    return u.scalar_type() == ScalarType::Double ? Scan<double>(in).forward()
                                                 : Scan<float>(in).forward();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_backward(
    const Tensor& grad_y, const Tensor& grad_last_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, Optional D, Optional z, Optional delta_bias,
    bool delta_softplus) {
    const Tensor A_dense = torch::stable::contiguous(A);
    const Tensor grad_state = torch::stable::contiguous(grad_last_state);
    const Optional D_dense = dense(D), bias_dense = dense(delta_bias);
    const Arguments in{u, delta, A_dense, B, C, D_dense, z, bias_dense, delta_softplus};
    check(in);
    check_sequence(grad_y, "grad_y", u);
    check_floating_cpu(grad_state, "grad_last_state", 3);
    STD_TORCH_CHECK(grad_state.scalar_type() == u.scalar_type() &&
                        grad_state.size(0) == in.batch() && grad_state.size(1) == in.channels() &&
                        grad_state.size(2) == in.states(),
                    "grad_last_state must be (batch, D, N), of the type of u.");
    return u.scalar_type() == ScalarType::Double ? Scan<double>(in).backward(grad_y, grad_state)
                                                 : Scan<float>(in).backward(grad_y, grad_state);
}

}  // namespace c2d
