// The operators of c2d_kernels in float64 loops, written straight from their equations.
//
// Only the tests compile this file (tests/oracle.py); neither torch nor any other source of the
// project takes part in it. It is the slowest formulation on purpose: every score, mask, bias and
// position is formed where the equation names it, without the rewriting that the PyTorch references
// and the kernels rely on, so an error in such a rewriting cannot cancel here.
//
// Arrays are NumPy float64, C-contiguous. Feature maps are (B, H, W, C), scans (B, D, L).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "channel_correlation.h"
#include "coordinate_positions.h"
#include "coordinate_query.h"
#include "selective_scan.h"
#include "spatial_correlation.h"
#include "window_attention.h"

PYBIND11_MODULE(c2d_oracle, module) {
    module.doc() = "c2d_kernels' operators in float64 loops, for its tests";
    module.def("selective_scan", &oracle::selective_scan);
    module.def("window_attention", &oracle::window_attention);
    module.def("permuted_window_attention", &oracle::permuted_window_attention);
    module.def("channel_correlation", &oracle::channel_correlation);
    module.def("spatial_correlation", &oracle::spatial_correlation);
    module.def("grid_positions", &oracle::grid_positions);
    module.def("coordinate_positions", &oracle::coordinate_positions);
    module.def("coordinate_query", &oracle::coordinate_query);
}
