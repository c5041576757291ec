// Returns a line each about the compiler, torch and the CUDA kernels, for `python -m rotnet_fast.doctor`.
extern "C" __attribute__((visibility("default"))) const char* rotnet_fast_build() {
  return ROTNET_COMPILER "\n" ROTNET_TORCH_VERSION "\n" ROTNET_CUDA_INFO;
}
