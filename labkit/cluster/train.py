"""Lab 03's travel adapter, trained by several processes at once: one for each GPU.

    torchrun --nproc_per_node 2 -m labkit.cluster.train

Azure ML starts the processes itself, with the same variables that torchrun sets. Each runs the
workflow of the notebook on its share of every batch; the first one keeps the adapter as lab 03's
product, and lab 03 then trains nothing.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from labkit.errors import LabError


def main() -> int:
    """Trains lab 03's adapter, unless it is there; 1 where a LabError ended it."""
    import labkit
    from labkit.making import set_seed

    rank = int(os.environ.get("RANK", 0))
    try:
        with contextlib.redirect_stdout(sys.stdout if rank == 0 else sys.stderr):
            lab = labkit.start("03")
        needs = ("awq-dense", "train.jsonl", "heldout.jsonl")
        model, train, heldout = map(lab.path, needs)
        tokenizer, records = labkit.load_tokenizer(model), labkit.load_records(train)
        longest = max(len(labkit.chat_ids(tokenizer, record)[0]) for record in records)
        data = {"train": train, "heldout": heldout} | lab.profile.at_once(longest)
        travel = lab.workflow("finetune", model=model, steps=lab.profile.steps, **data)
        if rank == 0:
            lab.keep("lora", train_share, travel, needs=needs, entry=("adapter", "trainer"))
        elif lab.products.change("lora", lab.products.decision(travel, needs)):
            set_seed()
            with tempfile.TemporaryDirectory() as out:
                train_share(travel, Path(out))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train_share(workflow: dict, out: Path):
    """Runs the Olive *workflow* as one of WORLD_SIZE processes, and writes to *out*.

    Returns Olive's output. Raises LabError where the batch cannot be shared among them.
    """
    import olive
    import torch

    import labkit

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    workflow = shared(workflow, world)
    lora = workflow["passes"]["lora"]
    lora["training_args"]["output_dir"] = str(out / "trainer")
    if workflow["systems"]["local_system"]["accelerators"][0]["device"] == "gpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        lora["device_map"] = "current_device"  # "auto" would spread one model over all GPUs
    else:
        lora["device_map"] = None
        lora["training_args"]["use_cpu"] = True
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    if rank:  # the first one's cache is the folder's
        workflow["cache_dir"] = str(out / "cache")
    return olive.run(workflow | {"output_dir": str(out)}, package_config=labkit.olive_passes())


def shared(workflow: dict, world: int) -> dict:
    """A copy of *workflow* for one of *world* processes: together they take the same batch."""
    import copy

    workflow = copy.deepcopy(workflow)
    settings = workflow["passes"]["lora"]["training_args"]
    micro = settings["per_device_train_batch_size"]
    batch = micro * settings["gradient_accumulation_steps"]
    if batch % world:
        raise LabError(
            f"a batch of {batch} records cannot be shared among {world} processes. Start as many "
            f"as divide {batch}."
        )
    share = batch // world
    micro = next(size for size in range(min(micro, share), 0, -1) if share % size == 0)
    settings["per_device_train_batch_size"] = micro
    settings["gradient_accumulation_steps"] = share // micro
    settings["ddp_find_unused_parameters"] = False
    return workflow


if __name__ == "__main__":
    sys.exit(main())
