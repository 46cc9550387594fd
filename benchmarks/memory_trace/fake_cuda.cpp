// A CUDA device that is not there, for a CPU build of PyTorch: autograd asks for its hooks and guard.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {
namespace {

constexpr auto cuda = DeviceType::CUDA;

// The registry looks for a class of this name.
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);

// One device with one stream: with another number than 0, autograd would ask for events.
struct OneStreamGuard : c10::impl::NoOpDeviceGuardImpl<cuda> {
  Device getDevice() const override { return {cuda, 0}; }
  Device exchangeDevice(Device) const override { return {cuda, 0}; }
  c10::Stream getStream(Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, {cuda, 0});
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};
C10_REGISTER_GUARD_IMPL(CUDA, OneStreamGuard);

} // namespace
} // namespace at
