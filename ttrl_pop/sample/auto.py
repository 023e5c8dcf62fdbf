"""`auto` → the backend that fits this machine. Nothing of vLLM is imported to find out."""

import importlib.util

import torch


def backend_name(name: str, device: str) -> str:
    """`vllm` for `auto` where it is installed, a CUDA GPU is there and `device` does not say otherwise, else `hf`; any
    other name as it is."""
    if name != "auto":
        return name
    on_gpu = torch.cuda.is_available() and (device == "auto" or torch.device(device).type == "cuda")
    return "vllm" if on_gpu and importlib.util.find_spec("vllm") is not None else "hf"
