// The selective scan's gradients on the CPU, host side.
//
// The states before every tile come from the forward or are swept again. Then runs go from the last
// to the first, in threads as host.h has it. dB and dC are sums over channels, hence over
// blocks: each set of blocks writes its part of a run, and whoever finishes an image's run last
// adds the parts in their order. So few runs are under way at a time that the parts stay in cache.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "host.h"

namespace c2d {
namespace {

constexpr int64_t kRunsInCache = 4;

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
class ScanBackward : private Scan<T> {
  public:
    ScanBackward(const ScanArguments& in, const Tensor& grad_y) : Scan<T>(in), dy(grad_y) {
        for (int64_t b = 0; b < this->blocks(); ++b) {
            if (b == 0 || places[b].set != places[b - 1].set) {
                first_of_set.push_back(b);
            }
        }
        sets = static_cast<int64_t>(first_of_set.size());
        first_of_set.push_back(this->blocks());
        mixes = in.B.dim() > 2 || in.C.dim() > 2;
        columns = 2 * state_numbers / vector;
        slots = segments > 1 ? this->runs() : std::min(this->runs(), kRunsInCache);
    }

    Gradients operator()(const Tensor& grad_state, const Tensor& kept_states);

  private:
    using Scan<T>::in, Scan<T>::kernel, Scan<T>::places, Scan<T>::vector, Scan<T>::state_numbers,
        Scan<T>::segments, Scan<T>::segment;

    // A set's part of dB and dC in one run.
    T* part(int64_t set, int64_t run) const {
        return parts + (run % slots * sets + set) * kRun * columns;
    }

    Sequence<const T> dy_of(int64_t b) const {
        return sequence<const T>(dy, dy.const_data_ptr<T>(), places[b].image, places[b].channel);
    }

    // Where a block's sums over the steps of a segment are: dA, dB, dC, dD, ddelta_bias.
    int64_t sum_numbers() const { return 3 * state_numbers + 2 * vector; }

    void sweep(int64_t set, int64_t s, int64_t run);
    void collect(const Tensor& gradient, bool is_B, int64_t image, int64_t run) const;
    void add_sums(const Tensor& gradient, int64_t offset, int64_t per_channel) const;
    void join_adjoints();

    Tensor dy, du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, states;
    std::vector<int64_t> first_of_set;
    std::vector<T> sums, adjoints;
    T* parts = nullptr;
    int64_t sets, columns, slots;
    bool mixes;
};

// One run of a set's blocks, within segment s.
template <class T>
void ScanBackward<T>::sweep(int64_t set, int64_t s, int64_t run) {
    const int64_t begin = run * kRun;
    for (int64_t b = first_of_set[set]; b < first_of_set[set + 1]; ++b) {
        const auto output = [&](const Tensor& tensor) {
            return sequence<T>(tensor, tensor.mutable_data_ptr<T>(), places[b].image,
                               places[b].channel);
        };
        ScanGradients<T> to = {};
        to.dy = dy_of(b);
        to.du = output(du);
        to.ddelta = output(ddelta);
        to.dz = in.z ? output(dz) : Sequence<T>{};
        to.mixing = mixes ? part(set, run) : nullptr;
        to.accumulate = b > first_of_set[set];
        to.dA = &sums[(b * segments + s) * sum_numbers()];
        to.dB = to.dA + state_numbers;
        to.dC = to.dB + state_numbers;
        to.dD = to.dC + state_numbers;
        to.ddelta_bias = to.dD + vector;
        const Checkpoints<T> before = this->checkpoints(states.mutable_data_ptr<T>(), b, begin);
        kernel.backward(this->block(b), to, begin, this->run_end(run),
                        {before.data, before.tile_stride, before.state_stride},
                        &adjoints[(b * segments + s) * state_numbers]);
    }
}

// A run of dB or dC of one image: for each of its groups the sum of the parts, in order.
template <class T>
void ScanBackward<T>::collect(const Tensor& gradient, bool is_B, int64_t image, int64_t run) const {
    if (gradient.dim() == 2) {
        return;
    }
    const int64_t groups = groups_of(gradient), width = in.channels() / groups;
    const int64_t sets_of_image = sets / in.batch(), begin = run * kRun;
    std::vector<const T*> summands;
    for (int64_t i = 0; i < sets_of_image; ++i) {
        const int64_t set = image * sets_of_image + i;
        summands.push_back(part(set, run));
        const int64_t group = places[first_of_set[set]].channel / width;
        const bool last_of_group =
            i + 1 == sets_of_image || places[first_of_set[set + 1]].channel / width != group;
        if (last_of_group) {
            T* to = gradient.mutable_data_ptr<T>() +
                    (image * groups + group) * in.states() * in.length() + begin;
            kernel.sum_mixing(summands.data(), static_cast<int64_t>(summands.size()), in.states(),
                              this->run_end(run) - begin, is_B ? to : nullptr, is_B ? nullptr : to,
                              in.length());
            summands.clear();
        }
    }
}

// Adds the sums at `offset` of all blocks and segments, in order, to a gradient per channel.
template <class T>
void ScanBackward<T>::add_sums(const Tensor& gradient, int64_t offset, int64_t per_channel) const {
    T* data = gradient.mutable_data_ptr<T>();
    for (int64_t i = 0; i < this->blocks() * segments; ++i) {
        const Place& place = places[i / segments];
        const T* from = &sums[i * sum_numbers() + offset];
        for (int64_t c = 0; c < place.channels; ++c) {
            for (int64_t n = 0; n < per_channel; ++n) {
                data[(place.channel + c) * per_channel + n] += from[n * vector + c];
            }
        }
    }
}

// The adjoints of the states after each segment, from that after the last.
template <class T>
void ScanBackward<T>::join_adjoints() {
    std::vector<T> local(this->blocks() * segments * state_numbers, T(0));
    this->each_segment([&](int64_t b, int64_t s, int64_t begin, int64_t end) {
        kernel.adjoint(this->block(b), dy_of(b), begin, end,
                       &local[(b * segments + s) * state_numbers]);
    });
    for (int64_t b = 0; b < this->blocks(); ++b) {
        for (int64_t i = (b + 1) * segments - 1; i > b * segments; --i) {
            kernel.join(this->block(b), &this->segment_delta_sums[i * vector],
                        &adjoints[i * state_numbers], &local[i * state_numbers],
                        &adjoints[(i - 1) * state_numbers]);
        }
    }
}

template <class T>
Gradients ScanBackward<T>::operator()(const Tensor& grad_state, const Tensor& kept_states) {
    const auto empty = [&](const Tensor& like) {
        return torch::stable::new_empty(like, like.sizes());
    };
    const auto zeros = [&](const Tensor& like) {
        return torch::stable::new_zeros(like, like.sizes());
    };
    const Tensor nothing = torch::stable::new_empty(in.u, {0});
    du = empty(in.u);
    ddelta = empty(in.delta);
    dz = in.z ? empty(*in.z) : nothing;
    dA = zeros(in.A);
    dB = in.B.dim() == 2 ? zeros(in.B) : empty(in.B);
    dC = in.C.dim() == 2 ? zeros(in.C) : empty(in.C);
    dD = in.D ? zeros(*in.D) : nothing;
    ddelta_bias = in.delta_bias ? zeros(*in.delta_bias) : nothing;

    states = kept_states;
    if (states.numel() == 0 || states.const_data_ptr<T>()[0] != T(0)) {
        states = this->new_checkpoints();
        this->run(nullptr, states.mutable_data_ptr<T>(), nullptr);
    } else if (segments > 1) {
        this->find_segment_states();  // for the sums of delta
    }

    sums.assign(this->blocks() * segments * sum_numbers(), T(0));
    adjoints.assign(this->blocks() * segments * state_numbers, T(0));
    for (int64_t b = 0; b < this->blocks(); ++b) {
        this->take(b,
                   grad_state.const_data_ptr<T>() + places[b].image * in.channels() * in.states(),
                   &adjoints[((b + 1) * segments - 1) * state_numbers]);
    }
    const Tensor part_tensor =
        torch::stable::new_empty(in.A, {mixes ? slots * sets * kRun * columns : 0});
    parts = part_tensor.mutable_data_ptr<T>();
    const int64_t runs = this->runs(), batch = in.batch();
    if (segments > 1) {
        join_adjoints();
        torch::stable::parallel_for(0, sets * segments, 1, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) {
                const int64_t s = i % segments, first = s * segment / kRun;
                const int64_t end = std::min((s + 1) * segment, in.length());
                for (int64_t run = (end + kRun - 1) / kRun - 1; run >= first; --run) {
                    sweep(i / segments, s, run);
                }
            }
        });
        torch::stable::parallel_for(0, batch * runs, 1, [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; ++i) {
                collect(dB, true, i / runs, i % runs);
                collect(dC, false, i / runs, i % runs);
            }
        });
    } else if (sets > 0) {
        const int64_t sets_of_image = sets / batch;
        // For each image and run: how many parts are there, and one more once they are added up.
        std::vector<std::atomic<int64_t>> progress(batch * runs);
        run_chains(sets, runs, this->threads, [&](int64_t set, int64_t i) {
            const int64_t image = set / sets_of_image, run = runs - 1 - i;
            if (i >= slots) {  // the slot's last user has to be done with it
                const auto& before = progress[image * runs + run + slots];
                while (before.load(std::memory_order_acquire) <= sets_of_image) {
                    std::this_thread::yield();
                }
            }
            sweep(set, 0, run);
            auto& here = progress[image * runs + run];
            if (here.fetch_add(1, std::memory_order_acq_rel) + 1 == sets_of_image) {
                collect(dB, true, image, run);
                collect(dC, false, image, run);
                here.fetch_add(1, std::memory_order_release);
            }
        });
    }
    add_sums(dA, 0, in.states());
    if (in.B.dim() == 2) {
        add_sums(dB, state_numbers, in.states());
    }
    if (in.C.dim() == 2) {
        add_sums(dC, 2 * state_numbers, in.states());
    }
    if (in.D) {
        add_sums(dD, 3 * state_numbers, 1);
    }
    if (in.delta_bias) {
        add_sums(ddelta_bias, 3 * state_numbers + vector, 1);
    }
    return {du, ddelta, dA, dB, dC, dD, dz, ddelta_bias};
}

// (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias) of selective_scan; empty for what was not given.
// kept_states may be empty, or hold anything but 0 in the first place: then they are found again.
Gradients selective_scan_backward(const Tensor& grad_y, const Tensor& grad_last_state,
                                  const Tensor& kept_states, const Tensor& u, const Tensor& delta,
                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                  std::optional<Tensor> D, std::optional<Tensor> z,
                                  std::optional<Tensor> delta_bias, bool delta_softplus) {
    const ScanArguments in = checked({u, delta, A, B, C, D, z, delta_bias, delta_softplus});
    const Tensor grad_state = torch::stable::contiguous(grad_last_state);
    const Tensor kept = torch::stable::contiguous(kept_states);
    check_sequence(grad_y, "grad_y", u);
    check_floating_cpu(grad_state, "grad_last_state", 3);
    STD_TORCH_CHECK(grad_state.scalar_type() == u.scalar_type() &&
                        grad_state.size(0) == in.batch() && grad_state.size(1) == in.channels() &&
                        grad_state.size(2) == in.states(),
                    "grad_last_state must be (batch, D, N), of the type of u.");
    STD_TORCH_CHECK(kept.numel() == 0 ||
                        (kept.scalar_type() == u.scalar_type() && kept.is_cpu() &&
                         kept.numel() == in.batch() * in.tiles() * in.states() * in.channels()),
                    "kept_states must be what selective_scan returned, or empty.");
    return u.scalar_type() == ScalarType::Double
               ? ScanBackward<double>(in, grad_y)(grad_state, kept)
               : ScanBackward<float>(in, grad_y)(grad_state, kept);
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "selective_scan_backward(Tensor grad_y, Tensor grad_last_state, Tensor kept_states, "
        "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
        "Tensor? delta_bias, bool delta_softplus) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("selective_scan_backward", TORCH_BOX(&c2d::selective_scan_backward));
}
