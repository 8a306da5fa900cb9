// The selective scan's CUDA kernels, compiled as C++ and run by cuda_on_cpu.h. Tensors come as
// addresses and strides: tests/cuda_emulation/__init__.py makes them from torch tensors.
#include "cuda_on_cpu.h"

#include "../../csrc/selective_scan/cuda_backward.cuh"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

using c2d::cuda::Mixing;
using c2d::cuda::Scan;
using c2d::cuda::Sequence;

template <class T>
T* address(const py::dict& arguments, const char* name) {
    return arguments.contains(name)
               ? reinterpret_cast<T*>(arguments[name]["data"].cast<std::uintptr_t>())
               : nullptr;
}

std::int64_t stride(const py::dict& arguments, const char* name, int dim) {
    return arguments[name]["strides"].cast<py::list>()[dim].cast<std::int64_t>();
}

Sequence sequence(const py::dict& arguments, const char* name) {
    if (!arguments.contains(name)) {
        return {};
    }
    return {address<void>(arguments, name), stride(arguments, name, 0), stride(arguments, name, 1),
            stride(arguments, name, 2)};
}

Mixing mixing(const py::dict& arguments, const char* name, std::int64_t channels) {
    const auto dims = py::len(arguments[name]["strides"]);
    void* data = address<void>(arguments, name);
    const auto at = [&](int dim) { return stride(arguments, name, dim); };
    if (dims == 2) {
        return {data, 0, at(0), at(1), 0, 1, true};
    }
    if (dims == 3) {
        return {data, at(0), 0, at(1), at(2), channels, false};
    }
    const auto groups = arguments[name]["sizes"].cast<py::list>()[1].cast<std::int64_t>();
    return {data, at(0), at(1), at(2), at(3), channels / groups, false};
}

Scan describe(const py::dict& arguments, int most) {
    Scan scan = {};
    const auto sizes = arguments["u"]["sizes"].cast<py::list>();
    scan.batch = sizes[0].cast<std::int64_t>();
    scan.channels = sizes[1].cast<std::int64_t>();
    scan.length = sizes[2].cast<std::int64_t>();
    scan.states = arguments["A"]["sizes"].cast<py::list>()[1].cast<std::int64_t>();
    scan.softplus = arguments["softplus"].cast<bool>();
    scan.u = sequence(arguments, "u");
    scan.delta = sequence(arguments, "delta");
    scan.z = sequence(arguments, "z");
    scan.y = sequence(arguments, "y");
    scan.dy = sequence(arguments, "dy");
    scan.du = sequence(arguments, "du");
    scan.ddelta = sequence(arguments, "ddelta");
    scan.dz = sequence(arguments, "dz");
    scan.B = mixing(arguments, "B", scan.channels);
    scan.C = mixing(arguments, "C", scan.channels);
    scan.A = address<float>(arguments, "A");
    scan.D = address<float>(arguments, "D");
    scan.delta_bias = address<float>(arguments, "delta_bias");
    scan.last_state = address<float>(arguments, "last");
    scan.grad_last_state = address<float>(arguments, "dlast");
    scan.dA = address<float>(arguments, "dA");
    scan.dB = address<float>(arguments, "dB");
    scan.dC = address<float>(arguments, "dC");
    scan.dD = address<float>(arguments, "dD");
    scan.ddelta_bias = address<float>(arguments, "ddelta_bias");
    c2d::cuda::plan(scan, most);
    return scan;
}

// Workspace that is not a number until it is written, with a guard behind its end.
struct Workspace {
    std::vector<std::vector<float>> pieces;
    float* operator()(std::int64_t numbers) {
        pieces.emplace_back(numbers + 64, NAN);
        return pieces.back().data();
    }
    void check() const {
        for (const auto& piece : pieces) {
            if (!std::all_of(piece.end() - 64, piece.end(), [](float x) { return x != x; })) {
                throw std::runtime_error("a kernel wrote behind the end of its workspace");
            }
        }
    }
};

template <class In>
void forward(const py::dict& arguments) {
    Scan scan = describe(arguments, c2d::cuda::kMostForward);
    Workspace workspace;
    const std::int64_t chunks = scan.batch * scan.channels * scan.chunks;
    scan.delta_sums = scan.chunks > 1 ? workspace(chunks) : nullptr;
    scan.states_at = scan.chunks > 1 ? workspace(chunks * scan.padded) : nullptr;
    scan.unfinished =
        scan.states > scan.padded ? workspace(scan.batch * scan.channels * scan.length) : nullptr;
    c2d::cuda::launch_forward<In>(scan, nullptr);
    workspace.check();
}

template <class In>
void backward(const py::dict& arguments) {
    Scan scan = describe(arguments, c2d::cuda::kMostBackward);
    Workspace workspace;
    const std::int64_t chunks = scan.batch * scan.channels * scan.chunks;
    if (scan.chunks > 1) {
        scan.delta_sums = workspace(chunks);
        scan.states_at = workspace(chunks * scan.padded);
        scan.adjoints_at = workspace(chunks * scan.padded);
    }
    if (scan.states > scan.padded) {
        scan.unfinished = workspace(3 * scan.batch * scan.channels * scan.length);
    }
    if (!scan.B.constant || !scan.C.constant) {
        scan.parts = workspace(scan.batch * scan.blocks * scan.length * 2 * scan.padded);
    }
    scan.sums = workspace(chunks * (3 * scan.padded + 2));
    c2d::cuda::launch_backward<In>(scan, nullptr);
    workspace.check();
}

// The emulator's own conscience: a barrier that half of the threads never reach.
template <bool warp>
void parting_threads() {
    const auto kernel = [] {
        if (threadIdx.x % 2 == 0) {
            if (warp) {
                __syncwarp();
            } else {
                __syncthreads();
            }
        }
    };
    ::emulator::launch(dim3(1), dim3(64), kernel);
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
    m.def("forward_float32", &forward<float>);
    m.def("forward_bfloat16", &forward<bfloat16>);
    m.def("backward_float32", &backward<float>);
    m.def("backward_bfloat16", &backward<bfloat16>);
    m.def("parting_warp", &parting_threads<true>);
    m.def("parting_block", &parting_threads<false>);
}
