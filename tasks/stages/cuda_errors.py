"""What texts of CUDA and its libraries mean for a job and its GPU.

A trainer reads its exceptions by them, and its worker what a trainer wrote that died at once:
bitsandbytes ends the process at an error, and C++ may abort it while the exception is raised.
"""

import re

from tasks.errors import ErrorCode

# The second line: a library has no memory for its handle or its workspace. The third: cuDNN has
# tried each of its engines, and PyTorch's own message failed, without NVML in its container.
_OUT_OF_MEMORY = r"""
    out[ _]of[ _]memory | cudaErrorMemoryAllocation | ALLOC(ATION)?_FAILED
    | (CUBLAS|CUDNN|CUSOLVER)_STATUS_NOT_INITIALIZED | CUDNN_STATUS_INTERNAL_ERROR\b
    | unable\ to\ find\ (an\ engine\ to\ execute|a\ valid\ cuDNN\ algorithm) | NVML_SUCCESS\ ==
"""
# After these errors each call of the process fails. They are the texts of cudaGetErrorString, and
# the names in CUDA's interfaces. PyTorch adds advice on "device-side assertions" to all errors.
# Where CUDA does not start, the process has no GPU either: each job would fail on this worker.
_GPU_FAILED = r"""
    illegal\ (memory\ access|instruction) | misaligned\ address | invalid\ program\ counter
    | device-side\ assert\ triggered | hardware\ (stack\ )?error | unspecified\ launch\ failure
    | launch\ timed\ out | uncorrectable\ (ECC|NVLink) | not\ supported\ on\ global/shared
    | tensor\ memory\ not\ completely | context\ is\ destroyed | CUDA\ unknown\ error
    | (CUDA|driver)\ error:\ (unknown|initialization)\ error | no\ CUDA-capable\ device
    | busy\ or\ unavailable | system\ not\ yet\ initialized | GPU\ is\ lost | fallen\ off\ the\ bus
    | NVRM:\ Xid | (CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_(EXECUTION_FAILED|MAPPING_ERROR)
    | (CUBLAS|CUSOLVER|CUSPARSE)_STATUS_INTERNAL_ERROR | (cudaError|CUDA_ERROR_)(Illegal|Misaligned
    |Assert|Invalid_?(Pc|Address_?Space)|Launch_?(Timeout|Fail)|Hardware|ECC|Nvlink|Contained
    |Tensor_?Memory|Context_?Is|Unknown)
    | No\ CUDA\ GPUs\ are\ available | no\ NVIDIA\ driver | NVIDIA\ driver\ on\ your\ system
    | driver\ version\ is\ insufficient | unsupported\ display\ driver
    | forward\ compatibility\ was\ attempted
"""
_FLAGS = re.IGNORECASE | re.VERBOSE
GPU_MESSAGES = {
    ErrorCode.GPU_FAILED: "the GPU failed",
    ErrorCode.OUT_OF_MEMORY: "the GPU's memory is full",
}
_BY_CODE = {
    ErrorCode.GPU_FAILED: re.compile(_GPU_FAILED, _FLAGS),
    ErrorCode.OUT_OF_MEMORY: re.compile(_OUT_OF_MEMORY, _FLAGS),
}


def find_cuda_error(text: str) -> tuple[ErrorCode, str] | None:
    """Return the code of CUDA's error in a text, and the line that reports it; None without one.

    A lost context counts before a full memory, which it may cause.
    """
    for code, pattern in _BY_CODE.items():
        for line in text.splitlines():
            if pattern.search(line):
                return code, line.strip()
    return None
