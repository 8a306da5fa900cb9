// The selective scan on the CPU, one instruction set at a time. The equations are in scan.h.
//
// Idea. A vector holds one state of `lanes` channels, so that the recursion over steps is plain
// vector arithmetic and B and C, which all channels share, are broadcasts from where they lie. The
// states of a group (8 with AVX-512) stay in registers while a tile of steps is swept. Inputs of a
// tile come through a buffer in cache, softplus done, which costs little and makes every layout the
// same: (B, L, D) is copied, (B, D, L) transposed in registers.
//
// Backwards, a tile's states and decays are computed again from the state before it and kept in
// cache while the adjoint is swept the other way; dB and dC, sums over channels, are sums over
// lanes here, made for 2 * group vectors at once.
//
// Costs per step and channel with N states: one exponential per state forwards (16 operations of
// the 20 that it takes), two backwards; bytes as in the operator's definition, (3 + 2 N / D)
// numbers forwards without z.
//
// What was measured: an AMD EPYC with AVX-512, two cores of a shared virtual machine, float32, B =
// 1, D = 48, N = 8, L = 57,600; medians or minima of 12 to 200 runs as they came.
//   forward 4.7-5.4 ms on one thread, 2.4-2.9 on two; 37 MB copied in the same run, out of cache,
//   at 38 to 45 GB/s take 0.9. An exponential with its two multiply-adds costs 1.65 ns per vector
//   alone.
// What was tried (old time / new time; a prediction first where one is given):
//   2^x by a table of 16 in a register and a polynomial of degree 3. Predicted 1.3 of the
//     exponential, measured 1.1: dropped, the code is not worth it.
//   2^x put together by integer arithmetic in place of reduce, round and scalef: 0.77, dropped (the
//     narrower instruction sets have nothing else).
//   Prefetch of the next tile's lines, for a share of 35 % that reading had: forward 1.1-1.2,
//     forward and backward 1.2.
//   softplus and its slope from one exponential: forward and backward 1.05-1.1.
//   States kept by the forward. Predicted 1.25 of forward and backward; measured 1.0-1.1 at first,
//     since new memory costs as much as a sweep: 39 MB are touched for the first time in each
//     forward and backward. Hence also:
//   dB and dC summed run by run in buffers that stay in cache, not at the end: backward 1.2-1.7.
#include "cpu_backward.h"

namespace c2d::C2D_ISA {
namespace {

template <class T>
constexpr ScanKernels<T> kKernels = {kLanes<T>,   padded_states, forward<T>,   adjoint<T>,
                                     backward<T>, join<T>,       sum_mixing<T>};

}  // namespace

extern const ScanKernels<float> scan_float32 = kKernels<float>;
extern const ScanKernels<double> scan_float64 = kKernels<double>;

}  // namespace c2d::C2D_ISA
