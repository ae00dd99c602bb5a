/* The part of the CUDA runtime that autograd and DistributedDataParallel ask beside their kernels, for a machine without a
   card: two devices with nothing to wait for. tests/campaigns/gpu_dry.py preloads it; no kernel is ever started, and whatever
   is not here fails as it does without a driver. */

typedef void *handle;

static _Thread_local int device = 0;

int cudaGetDeviceCount(int *count) { *count = 2; return 0; }
int cudaGetDevice(int *current) { *current = device; return 0; }
int cudaSetDevice(int wanted) { device = wanted; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cuDevicePrimaryCtxGetState(int of, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }

int cudaStreamIsCapturing(handle stream, int *status) { *status = 0; return 0; }
int cudaStreamWaitEvent(handle stream, handle event, unsigned flags) { return 0; }
int cudaEventCreateWithFlags(handle *event, unsigned flags) { *event = &device; return 0; }
int cudaEventRecord(handle event, handle stream) { return 0; }
int cudaEventRecordWithFlags(handle event, handle stream, unsigned flags) { return 0; }
int cudaEventQuery(handle event) { return 0; }
int cudaEventSynchronize(handle event) { return 0; }
int cudaEventElapsedTime(float *ms, handle start, handle end) { *ms = 0; return 0; }
int cudaEventDestroy(handle event) { return 0; }
