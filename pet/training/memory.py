"""Peak memory, of a device and of this process."""

import contextlib
import resource
import sys
from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Start a new measurement of the process's peak memory (Linux; elsewhere the peak is that of the whole process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Peak resident memory since the last reset, in bytes, and the same of the GPU if there is one."""
    peak = {"peak_memory_bytes": resident_peak()}
    if torch.cuda.is_available():
        peak["peak_gpu_memory_bytes"] = int(torch.cuda.max_memory_allocated())
    return peak


def resident_peak() -> int:
    """VmHWM where the kernel tells it (it can be reset), else the lifetime maximum."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
