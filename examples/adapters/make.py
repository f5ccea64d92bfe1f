"""Makes the adapters of `make demo` anew, each as its run file in `examples/train` says.

Trains, evaluates and publishes them in a home that goes away again, and puts here what was
published (weights, configuration, manifest, model card), the evaluation's report and the loss
curve. Run it with `make demo-adapters`; on the same machine the weights come out the same.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]
LORAGATE = Path(sys.executable).with_name("loragate")
ADAPTERS = {"support": AdapterName("acme", "support"), "router": AdapterName("globex", "router")}
PUBLISHED = ("adapter_model.safetensors", "adapter_config.json", "manifest.json", "README.md")


def main(wanted: list[str]) -> None:
    """Makes those named, or both."""
    for name in wanted or ADAPTERS:
        with tempfile.TemporaryDirectory(prefix="loragate-demo-") as scratch:
            make(name, ADAPTERS[name], Home(Path(scratch)).ensure())


def make(name: str, adapter: AdapterName, home: Home) -> None:
    home.models.rmdir()
    home.models.symlink_to(Home.from_environment().models)
    run, out = ROOT / "runs" / name, ROOT / "examples/adapters" / f"{adapter.tenant}-{adapter.name}"
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create(adapter.tenant, actor="demo")
        subprocess.run(
            [str(LORAGATE), "train", f"examples/train/{name}.toml", "--overwrite"],
            check=True,
            cwd=ROOT,
            env=os.environ | {"LORAGATE_HOME": str(home.root)},
        )
        [version] = registry.versions.show(adapter).versions
        artifact = home.artifacts / version.version.digest
        for file in PUBLISHED:
            shutil.copyfile(artifact / file, out / file)
    shutil.copyfile(run / "loss.png", out / "loss.png")
    shutil.copyfile(run / "evaluation/report.html", out / "report.html")


if __name__ == "__main__":
    main(sys.argv[1:])
