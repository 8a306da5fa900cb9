// Runs CUDA kernels on a CPU, one block at a time, each thread of it a fiber. For tests: it finds
// wrong addresses, sums and barriers without a GPU; it says nothing about speed.
//
// Blocks run in a shuffled order, and between two barriers the threads of a block do, so that a
// missing barrier shows as a wrong result. A barrier that some threads of its block or warp do not
// reach, or reach at another line, is an error. Kernels are compiled as they are: this header comes
// first and gives CUDA's words a meaning.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define C2D_CUDA_ON_CPU
#define C2D_KERNEL
#define __device__
#define __forceinline__ inline
#define __shared__ static  // one block runs at a time

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 512 * 1024;

enum class Waits { no, warp, block };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 thread;
    bool done = false;
    Waits waits = Waits::no;
    int line = 0;
    float exchanged = 0;
};

struct Block {
    std::vector<Fiber> fibers;
    Fiber* current = nullptr;
    ucontext_t scheduler;
    dim3 index;
    const std::function<void()>* body = nullptr;
};

inline Block*& block() {
    static Block* running = nullptr;
    return running;
}

inline void entry() {
    Block& here = *block();
    (*here.body)();
    here.current->done = true;
    swapcontext(&here.current->context, &here.scheduler);
}

inline void barrier(Waits kind, int line) {
    Block& here = *block();
    here.current->waits = kind;
    here.current->line = line;
    swapcontext(&here.current->context, &here.scheduler);
}

inline float shuffle_xor(float value, int mask, int line) {
    Block& here = *block();
    const std::size_t self = here.current - here.fibers.data();
    here.current->exchanged = value;
    barrier(Waits::warp, line);
    const float found = here.fibers[self ^ mask].exchanged;
    barrier(Waits::warp, line);
    return found;
}

// Lets the threads of a group go if all of them wait at one barrier of this kind.
inline bool release(Fiber* begin, Fiber* end, Waits kind) {
    const bool any = std::any_of(begin, end, [&](const Fiber& f) { return f.waits == kind; });
    if (!any) {
        return false;
    }
    for (Fiber* fiber = begin; fiber != end; ++fiber) {
        if (fiber->done || (fiber->waits == kind && fiber->line != begin->line)) {
            throw std::runtime_error("threads part at the barrier of line " +
                                     std::to_string(begin->line) + " and line " +
                                     std::to_string(fiber->done ? 0 : fiber->line));
        }
        if (fiber->waits != kind) {
            return false;  // the rest is still on its way, or waits for something else
        }
    }
    for (Fiber* fiber = begin; fiber != end; ++fiber) {
        fiber->waits = Waits::no;
    }
    return true;
}

inline void run_block(dim3 index, unsigned threads, const std::function<void()>& body,
                      std::mt19937& random) {
    static Block here;
    block() = &here;
    here.index = index;
    here.body = &body;
    if (here.fibers.size() != threads) {
        here.fibers = std::vector<Fiber>(threads);
    }
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = here.fibers[i];
        if (!fiber.stack) {
            fiber.stack.reset(new char[kStack]);
        }
        fiber.thread = dim3(i, 0, 0);
        fiber.done = false;
        fiber.waits = Waits::no;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry, 0);
    }
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) {
        order[i] = i;
    }
    for (;;) {
        std::shuffle(order.begin(), order.end(), random);
        for (unsigned i : order) {
            Fiber& fiber = here.fibers[i];
            if (!fiber.done && fiber.waits == Waits::no) {
                here.current = &fiber;
                swapcontext(&here.scheduler, &fiber.context);
            }
        }
        Fiber* all = here.fibers.data();
        if (std::all_of(all, all + threads, [](const Fiber& f) { return f.done; })) {
            return;
        }
        bool released = release(all, all + threads, Waits::block);
        for (unsigned first = 0; first < threads; first += kWarp) {
            released |= release(all + first, all + std::min(first + kWarp, threads), Waits::warp);
        }
        if (!released) {
            throw std::runtime_error("no thread of the block can go on");
        }
    }
}

inline void launch(dim3 grid, dim3 threads, const std::function<void()>& body) {
    static std::mt19937 random(2503);
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blocks.emplace_back(x, y, z);
            }
        }
    }
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (const dim3& index : blocks) {
        run_block(index, threads.x, body, random);
    }
}

}  // namespace emulator

#define threadIdx (::emulator::block()->current->thread)
#define blockIdx (::emulator::block()->index)
#define __syncthreads() ::emulator::barrier(::emulator::Waits::block, __LINE__)
#define __syncwarp() ::emulator::barrier(::emulator::Waits::warp, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) ::emulator::shuffle_xor(value, lanes, __LINE__)
#define C2D_LAUNCH(kernel, grid, threads, stream, ...) \
    ((void)(stream), ::emulator::launch(grid, threads, [&] { kernel(__VA_ARGS__); }))

// bfloat16 as the kernels use it: converted to and from float, to the nearest, ties to even.
struct bfloat16 {
    std::uint16_t bits;
    bfloat16() = default;
    explicit bfloat16(float value) {
        std::uint32_t all;
        std::memcpy(&all, &value, 4);
        const bool is_number = value == value;
        bits =
            static_cast<std::uint16_t>(is_number ? (all + 0x7fff + (all >> 16 & 1)) >> 16 : 0x7fc0);
    }
    explicit operator float() const {
        const std::uint32_t all = static_cast<std::uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &all, 4);
        return value;
    }
};
