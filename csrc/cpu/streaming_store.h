// The ceiling that the benchmarks compare with: this machine's rate of streaming stores.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace rotnet::cpu {

// Bytes per second of `threads` threads that together overwrite `buffer` `repeats` times.
// On processors without streaming stores, memset stands in.
inline double streaming_store_rate(char* buffer, int64_t bytes, int threads, int repeats) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  const int64_t share = bytes / threads / 64 * 64;
  std::vector<std::thread> workers;
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      char* begin = buffer + t * share;
      ++ready;
      while (!go) std::this_thread::yield();
      for (int repeat = 0; repeat < repeats; ++repeat) {
#if defined(__x86_64__)
        for (int64_t i = 0; i < share; i += 64) {
          // Never zeros: some processors write those three times faster than data.
          const __m128i value = _mm_set1_epi32(static_cast<int>((i + repeat + 1) * 0x9E3779B9));
          for (int part = 0; part < 64; part += 16) {
            _mm_stream_si128(reinterpret_cast<__m128i*>(begin + i + part), value);
          }
        }
        _mm_sfence();
#else
        std::memset(begin, repeat + 1, share);
#endif
      }
    });
  }
  while (ready < threads) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  go = true;
  for (std::thread& worker : workers) worker.join();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return static_cast<double>(share) * threads * repeats / elapsed.count();
}

}  // namespace rotnet::cpu
