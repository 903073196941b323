"""A fake CUDA driver: answers what Numba's host code and cuda-core ask of the driver, and is strict about the order.

Numba's own Python code runs on it unchanged (contexts, arrays, finalizers, deferred deallocation), so that the GPU
engine runs as on hardware, with CUDA graphs. Kernels are recorded, not executed: one takes effect by filling all that
it writes with a digest of all that it reads (:func:`tests.gpu.driver.install.effect_of`). So equal inputs give equal
outputs, and a copy or a launch at a wrong time changes them.

Nothing happens before it must: copies, launches and graphs are done when the host waits for them, in an order that
streams and events allow. Every call that breaks a rule is a :class:`~tests.gpu.driver.faults.Fault`, which is raised
and remembered, for some callers swallow exceptions. Sources are NVIDIA's CUDA driver API (the page of the call that is
named), "API synchronization behavior" and "Stream synchronization behavior" there, the CUDA C++ programming guide, and
cuda-core's documentation. Where they leave something open, the fake takes what the caller must be prepared for.

Contexts and lifetimes:

- A thread that calls has chosen a device, and uses streams, events and memory of that device. (Programming guide,
  "Context": one is current to a host thread at a time; cuMemFree and others: CUDA_ERROR_INVALID_CONTEXT; cuEventRecord:
  event and stream are of one context.)
- Streams, events and graphs are used while they live. (cuStreamDestroy, cuEventDestroy, cuGraphExecDestroy; cuda-core,
  Stream.from_handle: the foreign stream must remain alive.)
- Memory is used within what was allocated, and not after it was freed; it is freed once. (cuMemAlloc, cuMemFree.)
- Memory is freed when its use is complete. (cuMemFree: it "may perform implicit synchronization", so it need not.)
- Host memory, pageable memory too, lives and does not change until its copy is complete. ("API synchronization
  behavior": asynchronous copies of pageable memory "might be synchronous with respect to host".)
- After the loss of a device, each call for it gives the same error. (CUDA_ERROR_LAUNCH_FAILED.)
- When all is closed and collected, no memory is left. (Ours.)

Order:

- What two streams do with the same bytes is ordered by events, unless both read. (Programming guide, "Streams":
  commands of different streams may run out of order or concurrently.)
- An event that is waited for was recorded. (cuEventRecord: before, it is an empty set of work, and waiting no order.)
- Launches of a graph are ordered behind each other. (cuGraphLaunch.)

Capture:

- It begins on a stream that is neither the legacy default one nor being captured; the thread that began it ends it, on
  the same stream. (cuStreamBeginCapture, cuStreamEndCapture.)
- While a thread captures, unless relaxed, it neither allocates nor frees, nor loads kernels, nor makes synchronous
  copies; in global mode, no thread does. (cuThreadExchangeStreamCaptureMode.)
- Nobody waits for a stream that is captured, or for its context, or destroys it. (Programming guide, "Prohibited and
  Unhandled Operations".)
- While a stream is captured, nobody uses the legacy default stream of its context. (cuStreamIsCapturing: that one is
  "in an unusable state", as Numba's streams block with it.)
- Events do not cross the border of a capture; nor does the host wait for those recorded in one. (Programming guide,
  "Cross-stream Dependencies and Events"; CUDA_ERROR_STREAM_CAPTURE_ISOLATION, CUDA_ERROR_CAPTURED_EVENT.)

Launches:

- A graph is launched when it is complete, on a live stream of its context, while its operands live. (cuGraphLaunch;
  cuda-core, GraphBuilder: it does not keep operands alive.)
- More than 48 KB of dynamic shared memory have been asked for. (Programming guide, "Technical Specifications per
  Compute Capability"; cuKernelSetAttribute.)

What it leaves out: what kernels compute; copies, memset and host functions within captures; unified memory, memory
pools, callbacks, priorities, peers; cuda-core beyond streams and graph builders; Numba's compiler and launcher (types
and counts of arguments are the PTX machine's subject).

| module | contents |
|---|---|
| ``memory`` | allocations, and which parts of them are in use |
| ``timeline`` | streams, events, operations, and which happens before which |
| ``contexts`` | how calls are made: contexts of threads, what captures forbid, errors on demand |
| ``driver`` | the calls |
| ``graphs`` | cuda-core's streams and graph builders |
| ``install`` | in the place of the driver |
"""
