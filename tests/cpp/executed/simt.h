// CUDA kernels on the CPU: what a .cu file needs of CUDA, for a C++ compiler.
//
// tests/support/executed_kernels.py rewrites the two things that are not C++, launches and shared variables; all else is
// compiled as nvcc does for a GPU, with __CUDA_ARCH__. Each thread of a block is a fiber. Blocks run in a random
// order, and so do the threads of a block from one barrier to the next: what is read without a barrier after the
// write is sooner or later read before it. Shared memory begins with random bytes, in which that shows.
//
// What does not show: threads that overtake each other between barriers, warps, the order in which other blocks see
// writes, and speed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace simt {

constexpr size_t kStackBytes = 32 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool finished;
  int barrier;  // the line of the one that it waits at
};

struct SharedVariable {
  std::unique_ptr<unsigned char[]> memory;  // of its own, so that AddressSanitizer knows where it ends
  int64_t block = -1;                       // the one that it belongs to
};

inline int planted = 0;          // number of the fault that is switched on; 0 for none
inline int multiprocessors = 1;  // that the device claims to have
inline std::mt19937_64 random_bits;
inline std::map<std::string, int64_t> launches;  // by kernel, as written in the launch
inline std::string last_launch;
inline int64_t blocks_run = 0, barriers_passed = 0;
inline cudaError_t error = cudaSuccess;

inline uint3 thread_index{}, block_index{};
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline const std::function<void()>* kernel;
inline std::map<std::pair<std::string, size_t>, SharedVariable> shared_variables;  // by name and size

[[noreturn]] inline void fail(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  std::vprintf(format, values);
  va_end(values);
  std::printf(" in %s, block %u, thread %u\n", last_launch.c_str(), block_index.x, thread_index.x);
  std::fflush(stdout);
  std::_Exit(1);
}

inline void fill_with_random_bytes(unsigned char* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    const uint64_t word = random_bits();
    std::memcpy(memory + i, &word, std::min(sizeof(word), bytes - i));
  }
}

// The variable `name` of the running block. The first thread that comes here finds random bytes in it.
template <class T>
T& shared(const char* name) {
  SharedVariable& variable = shared_variables[{name, sizeof(T)}];
  if (variable.memory == nullptr) variable.memory.reset(new unsigned char[sizeof(T)]);
  if (variable.block != blocks_run) {
    variable.block = blocks_run;
    fill_with_random_bytes(variable.memory.get(), sizeof(T));
  }
  return *reinterpret_cast<T*>(variable.memory.get());
}

inline void run_thread() {
  (*kernel)();
  Fiber& self = fibers[thread_index.x];
  self.finished = true;
  swapcontext(&self.context, &scheduler);
}

inline void wait_at_barrier(int line) {
  Fiber& self = fibers[thread_index.x];
  self.barrier = line;
  ++barriers_passed;
  swapcontext(&self.context, &scheduler);
}

// One block: rounds from barrier to barrier, each with the threads in another order.
inline void run_block(std::vector<unsigned>& order) {
  for (const unsigned thread : order) {
    Fiber& fiber = fibers[thread];
    fiber.finished = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_thread, 0);
  }
  do {
    std::shuffle(order.begin(), order.end(), random_bits);
    for (const unsigned thread : order) {
      thread_index.x = thread;
      swapcontext(&scheduler, &fibers[thread].context);
      const Fiber &here = fibers[thread], &first = fibers[order[0]];
      if (here.finished != first.finished || (!here.finished && here.barrier != first.barrier)) {
        fail("barrier divergence: not all threads come to the same barrier,");
      }
    }
  } while (!fibers[order[0]].finished);
  ++blocks_run;
}

// What `kernel<<<blocks, threads, shared_bytes, stream>>>(...)` becomes; `body` calls the kernel.
inline void launch(const char* name, const std::function<void()>& body, unsigned blocks, unsigned threads,
                   size_t shared_bytes = 0, cudaStream_t /*stream*/ = nullptr) {
  last_launch = name;
  if (shared_bytes != 0) fail("shared memory of a size that the launch gives is not emulated,");
  if (blocks == 0 || threads == 0 || threads > 1024) {
    error = cudaErrorInvalidConfiguration;
    return;
  }
  ++launches[name];
  kernel = &body;
  if (fibers.size() < threads) fibers.resize(threads);
  std::vector<unsigned> numbers(blocks), order(threads);
  std::iota(numbers.begin(), numbers.end(), 0u);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(numbers.begin(), numbers.end(), random_bits);
  for (const unsigned number : numbers) {
    block_index.x = number;
    run_block(order);
  }
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return result;
}

inline uint32_t funnelshift_rc(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> std::min(shift, 32u));
}

inline uint32_t funnelshift_lc(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) << std::min(shift, 32u) >> 32);
}

inline void store_16_bytes(uint4* to, const uint4& value) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0)
    fail("a store of 16 bytes to an address that is no multiple of 16,");
  std::memcpy(to, &value, sizeof(value));
}

}  // namespace simt

#undef __global__
#undef __device__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__ static
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__
#define __CUDA_ARCH__ 900

#define threadIdx simt::thread_index
#define blockIdx simt::block_index
#define __syncthreads() simt::wait_at_barrier(__LINE__)
#define __uint_as_float simt::float_of
#define __float_as_uint simt::bits_of
#define __byte_perm simt::byte_perm
#define __funnelshift_rc simt::funnelshift_rc
#define __funnelshift_lc simt::funnelshift_lc
#define __stcg simt::store_16_bytes
