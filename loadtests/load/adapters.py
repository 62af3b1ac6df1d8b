"""The library that load tests make: tiny adapters with distinct contents, and prompts that each belong to one expert.

Adapters are PEFT folders in memory, sent as uploads. Without a template they adapt one projection of the packaged base
with rank 1 (about 5 KB); with one they have the template's tensors, for other bases. Prompts are made-up words that no
other expert's prompts hold, so that any router that reads prompts can tell them apart.
"""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import load_file, save

HIDDEN, KV = 576, 192
NUM_EXAMPLES = 4
PREFIX = "load-"
_WORDS = 10
_SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
_TENSOR = "base_model.model.model.layers.0.self_attn.v_proj.lora_{}.weight"


def name_of(index: int) -> str:
    """The expert with this number."""
    return f"{PREFIX}{index:05d}"


@lru_cache(maxsize=4096)
def examples_of(index: int) -> tuple[str, ...]:
    """Prompts that belong to the expert with this number, and to no other."""
    draw = random.Random(index)
    words = ["".join(draw.choices(_SYLLABLES, k=4)) for _ in range(_WORDS + NUM_EXAMPLES)]
    return tuple(" ".join([*words[:_WORDS], words[_WORDS + number]]) for number in range(NUM_EXAMPLES))


def prompt_of(index: int, serial: int, num_words: int) -> str:
    """One of an expert's prompts, again and again up to about so many words, with a number that makes it new."""
    example = examples_of(index)[serial % NUM_EXAMPLES]
    return " ".join([*[example] * max(1, num_words // (_WORDS + 1)), str(serial)])


@dataclass(frozen=True, slots=True)
class Template:
    """What every adapter looks like.

    Attributes:
        config: adapter_config.json.
        tensors: Of adapter_model.safetensors; every adapter gets noise of its own in them.
        noise: Its standard deviation. Probes on a real engine must tell an adapter from the base and from the others.
    """

    config: bytes
    tensors: dict[str, np.ndarray]
    noise: float = 1e-3

    @classmethod
    def load(cls, folder: Path | None) -> Template:
        """A PEFT folder's, in a number format that numpy knows; None is one projection of the packaged base."""
        if folder is not None:
            config = (folder / "adapter_config.json").read_bytes()
            return cls(config, load_file(folder / "adapter_model.safetensors"))
        made = json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": "",
                "r": 1,
                "lora_alpha": 2,
                "target_modules": ["v_proj"],
                "layers_to_transform": [0],
                "task_type": "CAUSAL_LM",
                "bias": "none",
            }
        )
        shapes = {"A": (1, HIDDEN), "B": (KV, 1)}
        tensors = {_TENSOR.format(side): np.zeros(shape, np.float32) for side, shape in shapes.items()}
        return cls(made.encode(), tensors, noise=0.1)

    def files(self, seed: int) -> dict[str, bytes]:
        """Both files of the adapter of this seed; other seeds give other contents, hence other versions."""
        noise = np.random.default_rng(seed)
        tensors = {
            name: tensor + (noise.normal(size=tensor.shape) * self.noise).astype(tensor.dtype)
            for name, tensor in self.tensors.items()
        }
        return {"adapter_config.json": self.config, "adapter_model.safetensors": save(tensors)}


def upload(name: str, examples: tuple[str, ...], files: dict[str, bytes], *, held: bool = False) -> tuple[bytes, str]:
    """The body of a registration and its content type: multipart with a manifest and the two files.

    A version that is `held` is not offered by its bare name before it is promoted.
    """
    boundary = uuid.uuid4().hex
    manifest: dict[str, object] = {"name": name, "card": {"tags": ["load-test"]}, "examples": list(examples)}
    if held:
        manifest["publish"] = {"to": "ready"}
    parts = [_part(boundary, 'name="manifest"', orjson.dumps(manifest))]
    parts += [_part(boundary, f'name="files"; filename="{file}"', content) for file, content in files.items()]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _part(boundary: str, disposition: str, content: bytes) -> bytes:
    return f"--{boundary}\r\ncontent-disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
