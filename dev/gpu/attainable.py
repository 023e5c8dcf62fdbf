"""What a device attains: bytes a second of a copy within its memory, and operations a second of a matrix product."""

from statistics import median

import torch

from benchmarks.machine import now
from dev.gpu.rows import Row

REPEATS = 7


def measure(device: str, quick: bool) -> Row:
    """Of a bf16 product on random numbers, and of a copy that no cache holds; bytes read and written both count."""
    numbers, side = (2**24, 512) if quick else (2**31, 8192)
    source = torch.ones(numbers, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    copies, products = [], []
    for _ in range(REPEATS):
        began = now()
        target.copy_(source)
        copies.append(now() - began)
        began = now()
        a @ b
        products.append(now() - began)
    return {
        "bytes_per_second": 2 * numbers / median(copies[1:]),
        "flops_per_second": 2 * side**3 / median(products[1:]),
    }
