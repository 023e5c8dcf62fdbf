"""How memory is taken: what libraries keep is bounded, and under a limit nothing large is kept in pieces."""

import platform
import subprocess
import sys

import pytest

from ttrl_pop.kernels import matmul

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own ways")

STATUS = """
import os, resource, sys
from ttrl_pop.kernels import malloc
def size(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) >> 10
"""


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", STATUS + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(matmul._kind() is not matmul.OneDnnWeight, reason="products are not oneDNN's here")
def test_products_of_ever_new_shapes_take_no_more_memory() -> None:
    code = """
malloc.configure()
import torch
from ttrl_pop.kernels.matmul import product
weight, x = torch.randn(768, 384), torch.randn(600, 384)
def shapes(start, stop):
    for rows in range(start, stop):
        product(x[:rows], weight)
    return size("VmSize"), size("VmRSS")
shapes(550, 600)  # the largest results have been held once
before = shapes(100, 150)
after = shapes(150, 550)
print(*(b - a for a, b in zip(before, after)))
"""
    addresses, resident = map(int, printed(code))
    assert addresses < 100  # 620 where all are kept
    assert resident < 60  # 410


def test_under_a_limit_on_addresses_what_is_freed_in_pieces_makes_room_for_a_whole() -> None:
    code = """
limit = (size("VmSize") << 20) + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
malloc.configure()
pieces = [bytearray(2 << 20) for _ in range(250)]
kept = pieces[::10]  # between them what is free would be in pieces of 18 MiB
del pieces
print(len(bytearray(400 << 20)) >> 20)
"""
    assert printed(code) == ["400"]
