// The selective scan on the CPU: its arguments, and the forward operator. How the work is cut and
// shared is in host.h, the backward in backward_host.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "host.h"

namespace c2d {
namespace {

void check_vector(const std::optional<Tensor>& tensor, const char* name, const Tensor& u) {
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

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(const ScanArguments& in, bool keep_states) {
    Scan<T> scan(in);
    const Tensor y = torch::stable::empty_like(in.u);
    const Tensor last = torch::stable::new_empty(in.A, {in.batch(), in.channels(), in.states()});
    const Tensor kept = keep_states ? scan.new_checkpoints() : torch::stable::new_empty(in.A, {0});
    scan.run(&y, keep_states ? kept.mutable_data_ptr<T>() : nullptr, last.mutable_data_ptr<T>());
    return {y, last, kept};
}

}  // namespace

void check_sequence(const Tensor& tensor, const char* name, const Tensor& u) {
    check_floating_cpu(tensor, name, 3);
    check_same(tensor, name, u, "u");
}

ScanArguments checked(ScanArguments in) {
    check_floating_cpu(in.u, "u", 3);
    check_sequence(in.delta, "delta", in.u);
    check_floating_cpu(in.A, "A", 2);
    STD_TORCH_CHECK(in.A.scalar_type() == in.u.scalar_type() && in.A.size(0) == in.channels() &&
                        in.states() >= 1 && in.states() <= kMostStates && in.channels() >= 1 &&
                        in.length() >= 1,
                    "A must be (D, N) of the type of u, with 1 to ", kMostStates,
                    " states, and u not empty.");
    check_mixing(in.B, "B", in.u, in.states());
    check_mixing(in.C, "C", in.u, in.states());
    check_vector(in.D, "D", in.u);
    check_vector(in.delta_bias, "delta_bias", in.u);
    if (in.z) {
        check_sequence(*in.z, "z", in.u);
    }
    in.A = torch::stable::contiguous(in.A);
    for (std::optional<Tensor>* vector : {&in.D, &in.delta_bias}) {
        if (*vector) {
            *vector = torch::stable::contiguous(**vector);
        }
    }
    return in;
}

std::vector<Place> cut(const ScanArguments& in, int lanes, int64_t most_sets) {
    const int64_t channels = in.channels();
    const int64_t width_B = channels / groups_of(in.B), width_C = channels / groups_of(in.C);
    std::vector<Place> places;
    int64_t set = -1;
    for (int64_t image = 0; image < in.batch(); ++image) {
        for (int64_t begin = 0; begin < channels;) {
            const int64_t end =
                std::min((begin / width_B + 1) * width_B, (begin / width_C + 1) * width_C);
            const int64_t blocks = (end - begin + lanes - 1) / lanes;
            const int64_t of_a_set = (blocks + most_sets - 1) / most_sets;
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

namespace {

// (y, last state, kept states) of the scan in scan.h; u, delta, z (batch, D, L), A (D, N), B and C
// (D, N), (batch, N, L) or (batch, G, N, L), D and delta_bias (D,), all of one type: float32 or
// float64. Kept are, if asked for, the states before every 16th step, (batch, ceil(L / 16), N, D),
// which spare the backward a sweep; else an empty tensor.
std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta,
                                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                                  std::optional<Tensor> D, std::optional<Tensor> z,
                                                  std::optional<Tensor> delta_bias,
                                                  bool delta_softplus, bool keep_states) {
    const ScanArguments in = checked({u, delta, A, B, C, D, z, delta_bias, delta_softplus});
    return u.scalar_type() == ScalarType::Double ? forward<double>(in, keep_states)
                                                 : forward<float>(in, keep_states);
}

}  // namespace
}  // namespace c2d

STABLE_TORCH_LIBRARY_FRAGMENT(c2d_native, m) {
    m.def(
        "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
        "Tensor? z, Tensor? delta_bias, bool delta_softplus, bool keep_states) -> "
        "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(c2d_native, CPU, m) {
    m.impl("selective_scan", TORCH_BOX(&c2d::selective_scan));
}
