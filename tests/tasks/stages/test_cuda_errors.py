import pytest

from tasks.errors import ErrorCode
from tasks.stages.cuda_errors import find_cuda_error

# What PyTorch adds to every error of CUDA.
ADVICE = """
Search for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below
might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8 GiB",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "nvrtc: error: NVRTC_ERROR_OUT_OF_MEMORY",
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/c10/cuda/CUDACachingAllocator.cpp":1131',
        "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",
        "Caught AcceleratorError in pin memory thread for device 0.\nCUDA error: out of memory",
    ],
)
def test_a_full_memory_is_known_by_its_texts(text: str) -> None:
    for whole in (text, text + ADVICE):
        found = find_cuda_error(whole)
        assert found is not None
        assert found[0] == ErrorCode.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: misaligned address",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error",
        "CUDA error: unknown error",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "No CUDA GPUs are available",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "The NVIDIA driver on your system is too old (found version 12020).",
        "Error 803: system has unsupported display driver / cuda driver combination",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "cudaErrorLaunchFailure",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER",
        "Error an illegal memory access was encountered at line 90 in file /src/csrc/ops.cu",
        "NVRM: Xid (PCI:0000:65:00): 79, GPU has fallen off the bus.",
    ],
)
def test_a_failed_gpu_is_known_by_its_texts(text: str) -> None:
    assert find_cuda_error(f"Traceback:\n  {text}{ADVICE}") == (ErrorCode.GPU_FAILED, text)
    # The context that is lost makes allocations fail, too.
    assert find_cuda_error(f"CUDA out of memory\n{text}") == (ErrorCode.GPU_FAILED, text)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: invalid argument" + ADVICE,
        "CUDA error: no kernel image is available for execution on the device" + ADVICE,
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried",
        "FileNotFoundError: /data/xid/out of shared memory.png",
        "memory allocation of 8192 bytes failed",
        "Torch not compiled with CUDA enabled",
        "",
    ],
)
def test_other_errors_are_not_the_gpus(text: str) -> None:
    assert find_cuda_error(text) is None
