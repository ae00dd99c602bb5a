/* The part of the CUDA runtime that autograd asks before it runs a backward pass, for a machine without a card: two devices
   that compute nothing. tests/campaigns/gpu_dry.py preloads it; no kernel is ever started. */

static _Thread_local int device = 0;

int cudaGetDeviceCount(int *count) { *count = 2; return 0; }
int cudaGetDevice(int *current) { *current = device; return 0; }
int cudaSetDevice(int wanted) { device = wanted; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
