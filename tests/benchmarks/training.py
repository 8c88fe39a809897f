"""Which way of training reaches the lowest held-out loss with as few tokens as possible.

A bare PEFT loop on the 4-bit values of lab 02, after `./lab run`:

    python tests/benchmarks/training.py runs/cpu --device cuda

Each row of TABLE is trained once a seed. Printed are the mean held-out loss (nats per token of the
answers), the loss of each seed, and the tokens that were read, padding included: on a CPU the time
of a step goes with them. The loop is not Olive's trainer, but takes the same options.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler

from labkit.profiles import PROFILES
from labkit.prompts import chat_ids
from labkit.tokenizer import load_tokenizer

CPU = PROFILES["cpu"]
UNTIL_NOV_28 = {
    "steps": 70,
    "batch": 4,
    "all_tokens": True,
    "schedule": "cosine",
    "betas": (0.9, 0.999),
}
TABLE = {
    "until 2026-11-28": UNTIL_NOV_28,
    "loss of the answers only": UNTIL_NOV_28 | {"all_tokens": False},
    "half of the steps": UNTIL_NOV_28 | {"all_tokens": False, "steps": 35},
    "half of the steps, rate 3e-3": UNTIL_NOV_28
    | {"all_tokens": False, "steps": 35, "rate": 3e-3},
    "half of the batch": UNTIL_NOV_28 | {"all_tokens": False, "batch": 2},
    "half of the batch, linear": UNTIL_NOV_28
    | {"all_tokens": False, "batch": 2, "schedule": "linear"},
    "80 steps of 2, linear, beta 0.9": {"betas": (0.9, 0.999)},
    "80 steps of 2, linear, beta 0.8": {},
    "B four times as fast": {"rate": 1e-3, "rate_of_b": 4.0, "betas": (0.9, 0.999)},
    "upper 20 of 30 layers": {"layers": list(range(10, 30))},
    "MLP only": {"targets": ("gate_proj", "up_proj", "down_proj")},
    "attention only": {"targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "adapter in the model's type": {"autocast": False},
    "compiled by torch": {"compiled": True},
}


def records(run: Path, name: str) -> list[tuple[list[int], int]]:
    """(token ids, number of ids before the answer) of each record."""
    tokenizer = load_tokenizer(run / "awq-dense")
    lines = (run / f"{name}.jsonl").read_text().splitlines()
    return [chat_ids(tokenizer, json.loads(line)) for line in lines]


def batch_of(rows, device, *, all_tokens: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [records, tokens], padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids, labels = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.full((len(rows), longest), -100),
    )
    for row, (numbers, start) in enumerate(rows):
        ids[row, : len(numbers)] = torch.tensor(numbers)
        begin = 0 if all_tokens else start
        labels[row, begin : len(numbers)] = torch.tensor(numbers[begin:])
    return ids.to(device), labels.to(device)


@torch.no_grad()
def heldout_loss(model, rows, device) -> float:
    total = count = 0
    for row in rows:
        ids, labels = batch_of([row], device, all_tokens=False)
        tokens = (labels[:, 1:] != -100).sum().item()
        total += model(input_ids=ids, labels=labels).loss.item() * tokens
        count += tokens
    return total / count


def train(
    base,
    rows,
    device,
    seed: int,
    *,
    steps=CPU.steps,
    batch=CPU.batch_size,
    rate=CPU.learning_rate,
    rate_of_b=1.0,
    betas=(0.8, 0.99),
    schedule="linear",
    all_tokens=False,
    layers=None,
    targets=CPU.lora_targets,
    autocast=True,
    compiled=False,
):
    """(model with a trained adapter, tokens that it has read, median seconds of a step).

    With *autocast*, PEFT keeps the adapter in float32 beside a model in bfloat16.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)
    config = LoraConfig(
        r=CPU.lora_rank,
        lora_alpha=CPU.lora_alpha,
        target_modules=list(targets),
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=autocast)
    forward = torch.compile(model, dynamic=True) if compiled else model
    parts = {True: [], False: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            parts["lora_B" in name].append(weight)
    groups = [{"params": parts[False]}, {"params": parts[True], "lr": rate * rate_of_b}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, weight_decay=0.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=5, num_training_steps=steps)
    queue, read, seconds = [], 0, []
    for _ in range(steps):
        started = time.perf_counter()
        while len(queue) < batch:
            queue += draw.sample(rows, len(rows))
        taken, queue = queue[:batch], queue[batch:]
        ids, labels = batch_of(taken, device, all_tokens=all_tokens)
        read += ids.numel()
        forward(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parts[True] + parts[False], 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return model, read, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run, runs/cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the frozen weights")
    parser.add_argument("--only", default="", help="a part of the name of the rows to run")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    chosen = {name: row for name, row in TABLE.items() if options.only in name}
    if not chosen:
        parser.error(f"no row has '{options.only}' in its name: {', '.join(TABLE)}")
    base = AutoModelForCausalLM.from_pretrained(
        options.run / "awq-dense",
        dtype=options.dtype,
        attn_implementation=CPU.attention,
        trust_remote_code=False,
    ).to(options.device)
    rows, heldout = records(options.run, "train"), records(options.run, "heldout")
    print(f"untrained: {heldout_loss(base, heldout, options.device):.3f}")
    for name, row in chosen.items():
        losses, steps, started = [], [], time.perf_counter()
        for seed in range(options.seeds):
            model, read, step = train(base, rows, options.device, seed, **row)
            losses.append(heldout_loss(model, heldout, options.device))
            steps.append(step)
            model.unload()
        seconds = (time.perf_counter() - started) / options.seeds
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        mean = sum(losses) / len(losses)
        print(
            f"{name}: {mean:.3f} ({each}), {read:,} tokens, {seconds:.0f} s,"
            f" {statistics.median(steps):.2f} s a step",
            flush=True,
        )


if __name__ == "__main__":
    main()
