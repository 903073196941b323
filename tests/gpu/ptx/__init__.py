"""A PTX machine: executes on the CPU, in NumPy, the PTX that Numba generates for the GPU engine's kernels.

It is written from NVIDIA's documentation alone (PTX ISA 8.7, the CUDA driver API, CuTe's layouts) and never imports
:mod:`pix2pix.gpu.simulator` or the layouts of :mod:`pix2pix.gpu.ptx`, so it and the engine cannot share a mistake.
Who extends it reads the documentation, not the engine. It has no clock: it says whether results are right and accesses
legal, not how long anything takes.

What it checks. An unknown instruction is an error. Launches: threads against ``.maxntid``, shared memory against what
was asked for and what there is, types of parameters. Global memory: every argument is an array of its own, far from all
others, NaN where nothing was written; vectors must be aligned; no block may use a word that another block of the launch
writes. Shared memory: variables lie apart; nobody may read what was never written; what one thread writes and another
reads or writes without a barrier between is a race, also for copies that land later. ``bar.sync`` must be reached by
all threads of a block at one place; ldmatrix, mma and wgmma by whole warps and warpgroups. Asynchronous copies land as
late as possible, or at once. wgmma's accumulators may not be touched before they are waited for, and what it reads must
be the same at its end as at its beginning. mbarriers count arrivals and bytes. Tensor maps obey what the driver
documents.

What it leaves out. Rounding inside tensor cores (sums here are exact, then float32), contraction of mul and add by
ptxas, the last places of ex2.approx and rcp.approx; ptxas itself and all that follows it; fences and memory order,
except for barriers as above and the proxies of what wgmma reads; clusters; streams, graphs, copies between host and
device; Numba's launcher.

| module | contents |
|---|---|
| ``parse`` | PTX text to instructions |
| ``blocks``, ``emit``, ``emit_warps``, ``scalar`` | basic blocks to Python functions over arrays of lanes |
| ``machine``, ``launch`` | scheduling of lanes, barriers, launches |
| ``global_memory``, ``shared_memory`` | bounds, alignment, uninitialised words, races |
| ``tensor_cores`` | ldmatrix, mma.sync, cp.async |
| ``mbarriers``, ``tma``, ``wgmma`` | Hopper's asynchronous instructions |
| ``compiler``, ``device`` | from Numba's kernels to PTX; in the place of the GPU |
"""
