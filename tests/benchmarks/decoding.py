"""Decoding: which search options of genai_config.json let the model answer best?

    python tests/benchmarks/decoding.py --run runs/cpu --out data/decoding.json

Each setting answers all held-out questions, with the travel adapter and without: greedy with
several repetition penalties, and one setting that samples, with three seeds. It says how many
answers loop, end by a stop token, keep the style and name a sight of their city. The file is
written after each setting, and a second call goes on where the first one stopped.
"""

import argparse
import itertools
import re
import sys
from collections import Counter
from pathlib import Path

import onnxruntime_genai as og

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import labkit
from labkit.files import read_json, sha256, write_json
from labkit.machine import machine, versions

ADAPTER = "adapter_weights.onnx_adapter"
LIMIT = 160  # tokens of an answer; our own longest has 133
PENALTIES = (1.0, 1.05, 1.1, 1.12, 1.15, 1.2, 1.3)
GREEDY = [{"do_sample": False, "repetition_penalty": penalty} for penalty in PENALTIES]
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.0}
SETTINGS = GREEDY + [SAMPLING | {"random_seed": seed} for seed in (1, 2, 3)]
STYLE = re.compile(r".{2,60}, in short: .+Pocket tip: ", re.DOTALL)
NAME = re.compile(r"(?<=[a-zà-ÿ,] )[A-ZÀ-Þ][\w'’-]{3,}")


def loops(text: str) -> bool:
    """Whether some four words in a row come three times or more."""
    words = text.lower().split()
    groups = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(groups.values(), default=0) >= 3


def city(record: dict) -> str:
    return record["response"].split(",")[0]


def sights(records: list[dict]) -> dict[str, set[str]]:
    """City -> the names within the sentences of our own answers about it."""
    found = {}
    for record in records:
        found.setdefault(city(record), set()).update(NAME.findall(record["response"]))
    return found


class Speaker:
    """The ONNX model in a folder, and its travel adapter."""

    def __init__(self, folder: Path):
        self.model = og.Model(str(folder))
        self.genai_tokenizer = og.Tokenizer(self.model)
        self.tokenizer = labkit.load_tokenizer(folder)
        self.adapters = og.Adapters(self.model)
        self.adapters.load(str(folder / ADAPTER), "travel")

    def answer(self, record: dict, adapter: str | None, options: dict) -> tuple[str, int, bool]:
        """(answer, its number of tokens, whether a stop token ended it within LIMIT)."""
        prompt = self.genai_tokenizer.encode(labkit.prompt_text(self.tokenizer, record))
        settings = og.GeneratorParams(self.model)
        settings.set_search_options(max_length=len(prompt) + LIMIT + 1, **options)
        generator = og.Generator(self.model, settings)
        if adapter:
            generator.set_active_adapter(self.adapters, adapter)
        generator.append_tokens(prompt)
        ids = []
        while len(ids) < LIMIT and not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        return self.genai_tokenizer.decode(ids).strip(), len(ids), generator.is_done()


def figures(records: list[dict], answers: list[tuple[str, int, bool]]) -> dict:
    """The shares in percent, with their 95 % intervals, and the mean number of tokens."""
    known = sights(records)
    checks = {"loops": [], "ended": [], "style": [], "sights": []}
    for record, (text, _, ended) in zip(records, answers, strict=True):
        own = known[city(record)] - set(re.findall(r"\w+", record["prompt"]))
        checks["loops"].append(loops(text))
        checks["ended"].append(ended)
        checks["style"].append(bool(STYLE.match(text)))
        checks["sights"].append(bool(own & set(NAME.findall(text))))
    percent = {
        check: labkit.bootstrap([100 * hit for hit in hits], unit="%").as_dict()
        for check, hits in checks.items()
    }
    return percent | {"tokens": sum(count for _, count, _ in answers) / len(answers)}


def name(options: dict) -> str:
    if not options["do_sample"]:
        return f"greedy, repetition penalty {options['repetition_penalty']}"
    return (
        f"temperature {options['temperature']}, top_p {options['top_p']}, "
        f"seed {options['random_seed']}"
    )


def print_table(rows: list[dict]) -> None:
    """For README.md of the benchmarks; in each cell: with the adapter / without."""
    print("| decoding | loop | end by a stop token | style | a sight | tokens, mean |")
    print("|---|---|---|---|---|---|")
    for options in SETTINGS:
        found = {row["adapter"]: row for row in rows if row["options"] == options}
        cells = []
        for check in ("loops", "ended", "style", "sights"):
            shares = [f"{found[a][check]['mean']:.0f}" for a in ("travel", None) if a in found]
            cells.append(" / ".join(shares) + " %")
        tokens = [f"{found[a]['tokens']:.0f}" for a in ("travel", None) if a in found]
        if tokens:
            print(f"| {name(options)} | {' | '.join(cells)} | {' / '.join(tokens)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder after lab 04")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=Path, help="a file to keep the answers in, as JSON")
    given = parser.parse_args()
    records = labkit.load_records(given.run / "heldout.jsonl")
    speaker = Speaker(given.run / "onnx")
    facts = {"adapter_sha256": sha256(given.run / "onnx" / ADAPTER), "limit": LIMIT}
    facts |= {"questions": len(records), "machine": machine(), "versions": versions()}
    kept = read_json(given.out)
    same = kept.get("adapter_sha256") == facts["adapter_sha256"]
    rows = kept["rows"] if same else []
    done = [(row["adapter"], row["options"]) for row in rows]
    for adapter, options in itertools.product(("travel", None), SETTINGS):
        if (adapter, options) in done:
            continue
        answers = [speaker.answer(record, adapter, options) for record in records]
        rows.append({"adapter": adapter, "options": options} | figures(records, answers))
        write_json(given.out, facts | {"rows": rows})
        if given.answers:
            texts = read_json(given.answers)
            texts[f"{adapter}: {name(options)}"] = [text for text, _, _ in answers]
            write_json(given.answers, texts)
        print(f"{adapter}: {name(options)}: done", file=sys.stderr)
    print_table(rows)


if __name__ == "__main__":
    main()
