#!/usr/bin/env bash
# The route of labs 02 to 05 as commands, without a notebook: docs/ORIGINAL.md says what each does.
# After './lab run', in the folder of the labs: bash docs/route.sh (or type it line by line)
set -euo pipefail
# a build server sends no telemetry, and Olive asks for one by this name
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD" OLIVE_DISABLE_TELEMETRY=1 BUILDKITE=1
runs=${LAB_RUNS:-runs}/cpu # what the labs have made: the model, the data, and the workflows
out=$runs/shell            # what the commands make

for file in awq lora onnx; do
    [[ -f $runs/workflows/$file.json ]] || {
        echo "error: $runs/workflows/$file.json is missing. Run './lab run' first, and this script from the folder of the labs." >&2
        exit 1
    }
done

# Our passes, for Olive
mkdir -p "$out"
python -c 'import json, labkit; print(json.dumps(labkit.olive_passes()))' > "$out/passes.json"

# Lab 02: four bits, and the same weights as plain numbers
olive run --config "$runs/workflows/awq.json" --package-config "$out/passes.json" --output_path "$out/awq"
python -c 'import pathlib, sys, labkit; labkit.unpack_awq(*map(pathlib.Path, sys.argv[1:]))' "$out/awq/model" "$out/awq-dense"

# Lab 03: an adapter. Olive reads the workflow before it imports a pass, so our data comes first
python -c 'import labkit.passes.chat_data; from olive.cli.launcher import main; main()' \
    run --config "$runs/workflows/lora.json" --package-config "$out/passes.json" \
    --model_name_or_path "$out/awq-dense" --output_path "$out/lora"

# Lab 04: one graph, and the adapter in a file of its own
olive run --config "$runs/workflows/onnx.json" --package-config "$out/passes.json" \
    --model_name_or_path "$out/awq-dense" --adapter_path "$out/lora/adapter" --output_path "$out/onnx"

# Lab 05: an answer, with the adapter
python - "$out/onnx" "Which sights should I not miss in Lisbon?" << 'END'
import json, sys
import onnxruntime_genai as og

folder, question = sys.argv[1:]
model = og.Model(folder)
tokenizer, adapters = og.Tokenizer(model), og.Adapters(model)
adapters.load(f"{folder}/adapter_weights.onnx_adapter", "travel")
messages = json.dumps([{"role": "user", "content": question}])
params = og.GeneratorParams(model)
params.set_search_options(max_length=200)
generator = og.Generator(model, params)
generator.set_active_adapter(adapters, "travel")
generator.append_tokens(tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True)))
pieces = tokenizer.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(pieces.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
END
