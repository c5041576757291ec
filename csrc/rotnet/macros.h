// Host/device qualifiers: the header core is plain C++17 and also compiles with only g++.
#pragma once

#if defined(__CUDACC__)
#define ROTNET_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ROTNET_HOST_DEVICE inline
#endif
