"""What a result is made with: packages, digests of files."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "loragate",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
)


def package_versions() -> dict[str, str]:
    """Of what is installed and can change the result."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def weights_digest(folder: Path) -> str:
    """`sha256:<hex>` over the folder's safetensors files, by name."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{total.hexdigest()}"
