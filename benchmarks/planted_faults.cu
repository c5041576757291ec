// Faults that compute-sanitizer must notice before its silence means anything. Usage: planted_faults TOOL
#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

// One thread writes behind the end of its memory.
__global__ void memcheck(int* out) { out[threadIdx.x + (threadIdx.x == kThreads - 1)] = 1; }

// Threads read what threads of another warp may not have written yet.
__global__ void racecheck(int* out) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// Nobody ever wrote what is read.
__global__ void initcheck(int* out) { out[threadIdx.x] += 1; }

// Half of a warp does not come to the barrier.
__global__ void synccheck(int* out) {
  if (threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

}  // namespace

int main(int count, char** arguments) {
  const char* fault = count == 2 ? arguments[1] : "";
  int* out = nullptr;
  if (cudaMalloc(&out, kThreads * sizeof(int)) != cudaSuccess) return std::fputs("no CUDA device\n", stderr), 2;
  if (std::strcmp(fault, "memcheck") == 0) {
    memcheck<<<1, kThreads>>>(out);
  } else if (std::strcmp(fault, "racecheck") == 0) {
    racecheck<<<1, kThreads>>>(out);
  } else if (std::strcmp(fault, "initcheck") == 0) {
    initcheck<<<1, kThreads>>>(out);
  } else if (std::strcmp(fault, "synccheck") == 0) {
    synccheck<<<1, kThreads>>>(out);
  } else {
    return std::fputs("usage: planted_faults memcheck|racecheck|initcheck|synccheck\n", stderr), 2;
  }
  cudaDeviceSynchronize();
  cudaFree(out);
  return 0;
}
