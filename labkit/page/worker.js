// Loads the files and the model, and writes answers, while the page stays responsive.
// It gets {load: {page, device, threads}}, {ask: {question, adapter, most}} and {stop: true}; it sends
// {progress}, {ready}, {token}, {done} and {failed}.
import { Said, forgetOthers, load, megabytes } from './files.js';
import { loadModel } from './model.js';

const TIGHT = /memory|allocat|bad_alloc|Aborted|RangeError|unreachable/i;
let model;
let page;
let stopped = false;

self.onmessage = async ({ data }) => {
    try {
        if (data.load) await start(data.load);
        if (data.ask) await answer(data.ask);
        if (data.stop) stopped = true;
    } catch (error) {
        postMessage({ failed: inWords(error), while: data.load ? 'loading' : 'answering' });
    }
};

async function start({ page: given, device, threads }) {
    page = given;
    const engine = page.engines[device];
    const wanted = { ...engine.files, ...page.files };
    const adapters = page.adapters;
    const files = [...Object.values(wanted), ...Object.values(adapters)];
    const total = files.reduce((sum, file) => sum + file.bytes, 0);
    let done = 0;
    const onBytes = (count) => postMessage({ progress: { done: (done += count), total } });
    const found = {};
    for (const [name, file] of Object.entries(wanted)) found[name] = await load(file, onBytes);
    found.adapters = {};
    for (const [name, file] of Object.entries(adapters)) {
        found.adapters[name] = await load(file, onBytes);
    }
    postMessage({ progress: { done: total, total, starting: true } });
    const ort = await import(engine.module);
    ort.env.wasm.wasmPaths = { mjs: new URL(engine.glue, import.meta.url).href };
    ort.env.wasm.wasmBinary = found.runtime.buffer;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'error';
    const began = performance.now();
    model = await loadModel(ort, page, device, found);
    await forgetOthers(Object.values(page.engines).flatMap((one) => Object.values(one.files))
        .concat(Object.values(page.files), Object.values(adapters)));
    const seconds = (performance.now() - began) / 1000;
    postMessage({ ready: { device, threads, mb: megabytes(total), seconds } });
}

async function answer({ question, adapter, most }) {
    stopped = false;
    const prompt = model.encode(question, adapter);
    const room = page.max_length - prompt.length;
    if (room < page.least) {
        throw new Said(
            `The question takes ${prompt.length} of ${page.max_length} tokens, and the answer ` +
            `needs ${page.least}. Shorten the question and ask again.`);
    }
    const ids = [];
    const times = [performance.now()];
    for await (const id of model.answer(prompt, adapter, Math.min(most, room))) {
        times.push(performance.now());
        ids.push(id);
        postMessage({ token: { text: model.decode(ids), ...speed(times) } });
        await pause(); // so that {stop} is heard
        if (stopped) break;
    }
    const ended = page.stop_ids.includes(ids.at(-1));
    const text = model.decode(ids);
    postMessage({ done: { text, adapter, ids, prompt, ended, stopped, ...speed(times) } });
}

/** Tokens, milliseconds to the first, and tokens per second after it. */
function speed(times) {
    const tokens = times.length - 1;
    const perSecond = tokens > 1 ? (1000 * (tokens - 1)) / (times.at(-1) - times[1]) : null;
    return { tokens, first: times[1] - times[0], perSecond };
}

const channel = new MessageChannel();
const pause = () => new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
});

function inWords(error) {
    if (error instanceof Said) return error.message;
    const text = `${error?.name ?? ''} ${error?.message ?? error}`.trim();
    if (TIGHT.test(text)) {
        return 'This device has too little memory for the model: it needs about ' +
            `${page.memory_mb} MB. Close other programs and tabs and load the page again, or open ` +
            `it on a larger device. (${text.slice(0, 160)})`;
    }
    return `The model could not be run here: ${text.slice(0, 300)}. Load the page again; if that ` +
        'does not help, try another browser.';
}
