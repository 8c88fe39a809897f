"""A canary: does a newer onnxruntime-genai still run what the labs have built?

    python tests/canary.py runs/cpu [VERSION]

Installs VERSION, else the newest, beside the lock's, and has both answer the same questions with
lab 04's folder, without an adapter and with each. Exit status 1 and the first difference, where
the tokens are not the same. A newer version may fail here: that is what a canary is for, and why
no test calls it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
        sys.exit(f"it does not run (exit status {done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(run: Path, version: str = "") -> None:
    if not (run / "onnx").is_dir():
        sys.exit(f"{run} has no folder 'onnx'. Run './lab run' first.")
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
            sys.exit(f"{versions} differ from token {at} on: {question}")
    print(f"{versions}: the same tokens for {len(old)} answers")


if __name__ == "__main__":
    if sys.argv[1] == "--answers":
        print(json.dumps(answers(Path(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]), *sys.argv[2:3])
