// The model: a question becomes token ids, the graph runs once a token, and the ids become text.
import { Tokenizer } from './lib/tokenizers.min.mjs';

/**
 * The session of ONNX Runtime, with what an answer needs beside it.
 * files: {graph, weights, tokenizer, tokenizerConfig, adapters: {name: bytes}}.
 */
export async function loadModel(ort, page, device, files) {
    const text = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
    const session = await ort.InferenceSession.create(files.graph, {
        executionProviders: [device],
        // the graph has the place of each weight in a file of this name
        externalData: [{ path: `${device}.bin`, data: files.weights }],
        // a second copy of the weights, in another order, wins no time here
        extra: { session: { disable_prepacking: '1' } },
        // on a GPU the cache stays there
        ...(device === 'webgpu' && {
            preferredOutputLocation: Object.fromEntries(
                presentNames(page).map((name) => [name, 'gpu-buffer'])),
        }),
    });
    const adapters = { none: zeros(ort, page) };
    for (const [name, bytes] of Object.entries(files.adapters)) {
        adapters[name] = readAdapter(ort, bytes);
    }
    const tokenizer = new Tokenizer(text(files.tokenizer), text(files.tokenizerConfig));
    return new Model(ort, page, session, adapters, tokenizer);
}

export class Model {
    constructor(ort, page, session, adapters, tokenizer) {
        Object.assign(this, { ort, page, session, adapters, tokenizer });
    }

    /** What is special about an adapter's questions: pieces of the chat format, a penalty. */
    asked(adapter) {
        return { ...this.page, ...this.page.prompt, ...this.page.asked[adapter] };
    }

    /** The ids that the model reads: the question within the model's chat format. */
    encode(question, adapter) {
        const { before, after, marks } = this.asked(adapter);
        // Control tokens in a question are broken by a space, as labkit/prompts.py does.
        let text = question.toWellFormed().replaceAll('\0', ' ').normalize('NFC').trim();
        for (const mark of marks) {
            text = text.replaceAll(mark, `${mark[0]} ${mark.slice(1)}`);
        }
        return this.tokenizer.encode(before + text + after, { add_special_tokens: false }).ids;
    }

    decode(ids) {
        return this.tokenizer.decode(ids, { skip_special_tokens: true });
    }

    /** Yields the ids of the answer to the prompt *ids*, until a stop token or *limit* tokens. */
    async *answer(ids, adapter, limit) {
        const { repetition_penalty: penalty, stop_ids: stops, max_length: most } = this.asked(adapter);
        const seen = new Set(ids);
        let cache = emptyCache(this.ort, this.page);
        try {
            for (let length = ids.length, fed = ids; length < most && limit > 0; limit--) {
                const { logits, ...present } = await this.session.run({
                    ...cache,
                    ...this.adapters[adapter],
                    input_ids: int64(this.ort, fed),
                    attention_mask: int64(this.ort, new Array(length).fill(1)),
                });
                free(cache);
                cache = Object.fromEntries(Object.entries(present).map(
                    ([name, value]) => [name.replace('present', 'past_key_values'), value]));
                const next = likeliest(logits.data, seen, penalty);
                yield next;
                if (stops.includes(next)) return;
                seen.add(next);
                fed = [next];
                length += 1;
            }
        } finally {
            free(cache);
        }
    }
}

/** Greedy, with GenAI's rule: logits of tokens that were there before are made less likely. */
export function likeliest(logits, seen, penalty) {
    for (const id of seen) {
        logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }
    let best = 0;
    for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
    return best;
}

/** Name -> tensor, of a safetensors file: its length, a JSON index, and the plain bytes. */
function readAdapter(ort, bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = 8 + Number(view.getBigUint64(0, true));
    const index = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    delete index.__metadata__;
    return Object.fromEntries(Object.entries(index).map(([name, { shape, data_offsets: [from, to] }]) => {
        const data = new Float32Array(bytes.slice(start + from, start + to).buffer);
        return [name, new ort.Tensor('float32', data, shape)];
    }));
}

/** An adapter that adds nothing: rank 1, all zeros. */
const zeros = (ort, page) => Object.fromEntries(Object.entries(page.adapter_inputs).map(
    ([name, shape]) => {
        const sizes = shape.map((size) => size || 1);
        return [name, new ort.Tensor('float32', new Float32Array(sizes[0] * sizes[1]), sizes)];
    }));

const layers = ({ layers: count }) => Array.from({ length: count }, (_, number) => number);
const presentNames = (page) => layers(page).flatMap(
    (number) => [`present.${number}.key`, `present.${number}.value`]);

const emptyCache = (ort, page) => Object.fromEntries(presentNames(page).map((name) => [
    name.replace('present', 'past_key_values'),
    new ort.Tensor('float32', new Float32Array(0), [1, page.kv_heads, 0, page.head_size]),
]));

const int64 = (ort, ids) => new ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
const free = (cache) => Object.values(cache).forEach((one) => one.dispose());
