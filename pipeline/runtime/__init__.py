"""The machine that a process runs on: devices, the allocator, threads and timing."""
